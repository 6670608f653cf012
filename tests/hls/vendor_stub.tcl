# Stands for vitis_hls or vivado: tclsh vendor_stub.tcl SCRIPT. Their commands are there by name and print how they were called,
# a line each, words apart by \x1f; any other name, variable or syntax that Tcl does not know ends the run.
# BOARD: what get_board_parts finds.   SLACK: of timing.   REGISTERS: name offset ..., as the made engine has them.

proc say {args} {
    puts "call\x1f[string map [list \n { }] [join $args \x1f]]"
}

foreach name {
    open_project set_top add_files open_solution set_part create_clock set_clock_uncertainty config_interface config_rtl
    create_project set_property update_ip_catalog create_bd_design apply_bd_automation connect_bd_intf_net connect_bd_net
    assign_bd_address validate_bd_design save_bd_design update_compile_order launch_runs wait_on_run open_run
    report_utilization report_timing_summary
} {
    proc $name args "say $name {*}\$args; return {}"
}
# Queries give back what was asked for.
foreach name {get_bd_cells get_bd_pins get_bd_intf_pins get_bd_addr_spaces get_bd_addr_segs get_files get_runs} {
    proc $name args {return [lindex $args end]}
}
proc current_project {} {return project}
proc current_fileset {} {return sources_1}
proc get_board_parts args {return [expr {[info exists ::env(BOARD)] ? $::env(BOARD) : {}}]}
proc get_timing_paths args {return paths}
proc get_property {name object} {
    switch $name {
        PROGRESS {return 100%}
        SLACK {return $::env(SLACK)}
        default {error "get_property $name: not known here"}
    }
}
proc create_bd_cell args {
    say create_bd_cell {*}$args
    return [lindex $args end]
}
proc make_wrapper args {return wrapper.v}

proc touch {path {text {}}} {
    file mkdir [file dirname $path]
    set channel [open $path w]
    puts -nonewline $channel $text
    close $channel
}
proc csynth_design {} {
    say csynth_design
    set text "// made\n"
    foreach {name offset} $::env(REGISTERS) {
        append text "#define XENGINE_CONTROL_ADDR_${name}_DATA $offset\n"
    }
    touch hls_project/solution/impl/misc/drivers/engine_v1_0/src/xengine_hw.h $text
}
proc export_design args {
    say export_design {*}$args
    touch hls_project/solution/impl/ip/component.xml
}
rename launch_runs launch_runs_said
proc launch_runs args {
    launch_runs_said {*}$args
    touch vivado_project/hetrun_pynq_z1.runs/impl_1/design_1_wrapper.bit bits
    touch vivado_project/hetrun_pynq_z1.gen/sources_1/bd/design_1/hw_handoff/design_1.hwh handoff
}
proc exit args {say exit}

set script [lindex $argv 0]
set channel [open $script]
set text [read $channel]
close $channel
if {![info complete $text]} {
    error "$script is no complete script"
}
source $script
