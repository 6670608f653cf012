# The engine has no pins of its own, and its clock comes from the processing system, whose constraints come with its IP.
# A configuration that does not fit the board's voltages must not be made.
set_property CFGBVS VCCO [current_design]
set_property CONFIG_VOLTAGE 3.3 [current_design]
