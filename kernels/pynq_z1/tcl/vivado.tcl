# The overlay:   vivado -mode batch -source vivado.tcl
# Processing system, engine, bitstream. Makes @OVERLAY@.bit and @OVERLAY@.hwh beside this script, which pynq.Overlay takes.

set here [file dirname [file normalize [info script]]]
cd $here
set ip_folder [file join $here hls_project solution impl ip]
if {![file exists [file join $ip_folder component.xml]]} {
    error "the engine is not in $ip_folder: run hls.tcl first"
}

create_project -force @OVERLAY@ vivado_project -part @PART@
# Digilent's board files, where they are installed, know the DDR's delays and all pins of the processing system.
set board [lindex [get_board_parts -quiet -latest_file_version "*:pynq-z1:*"] 0]
if {$board ne ""} {
    set_property board_part $board [current_project]
}
set_property ip_repo_paths [list $ip_folder] [current_project]
update_ip_catalog
create_bd_design design_1

set ps [create_bd_cell -type ip -vlnv xilinx.com:ip:processing_system7 ps]
if {$board ne ""} {
    apply_bd_automation -rule xilinx.com:bd_rule:processing_system7 \
        -config {make_external "FIXED_IO, DDR" apply_board_preset "1" Master "Disable" Slave "Disable"} $ps
} else {
    # PYNQ-Z1 reference manual: 50 MHz crystal, one MT41K256M16 at 525 MHz. The board's boot loader has set these already
    # when an overlay is loaded: they count for the .hwh alone.
    set_property -dict [list \
        CONFIG.PCW_CRYSTAL_PERIPHERAL_FREQMHZ {50} \
        CONFIG.PCW_APU_PERIPHERAL_FREQMHZ {650} \
        CONFIG.PCW_PRESET_BANK1_VOLTAGE {LVCMOS 1.8V} \
        CONFIG.PCW_UIPARAM_DDR_MEMORY_TYPE {DDR 3} \
        CONFIG.PCW_UIPARAM_DDR_PARTNO {MT41J256M16 RE-125} \
        CONFIG.PCW_UIPARAM_DDR_BUS_WIDTH {16 Bit} \
        CONFIG.PCW_UIPARAM_DDR_FREQ_MHZ {525} \
        CONFIG.PCW_UART0_PERIPHERAL_ENABLE {1} \
        CONFIG.PCW_UART0_UART0_IO {MIO 14 .. 15} \
        CONFIG.PCW_SD0_PERIPHERAL_ENABLE {1} \
        CONFIG.PCW_SD0_SD0_IO {MIO 40 .. 45} \
        CONFIG.PCW_ENET0_PERIPHERAL_ENABLE {1} \
        CONFIG.PCW_ENET0_ENET0_IO {MIO 16 .. 27} \
        CONFIG.PCW_USB0_PERIPHERAL_ENABLE {1} \
        CONFIG.PCW_USB0_USB0_IO {MIO 28 .. 39} \
    ] $ps
    apply_bd_automation -rule xilinx.com:bd_rule:processing_system7 \
        -config {make_external "FIXED_IO, DDR" Master "Disable" Slave "Disable"} $ps
}
# Four 64-bit ports to the DDR: weights on HP0 and HP2, which are at different ports of the controller.
set_property -dict [list \
    CONFIG.PCW_EN_CLK0_PORT {1} \
    CONFIG.PCW_EN_RST0_PORT {1} \
    CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ {@CLOCK_MHZ@} \
    CONFIG.PCW_USE_M_AXI_GP0 {1} \
    CONFIG.PCW_USE_S_AXI_HP0 {1} CONFIG.PCW_S_AXI_HP0_DATA_WIDTH {64} \
    CONFIG.PCW_USE_S_AXI_HP1 {1} CONFIG.PCW_S_AXI_HP1_DATA_WIDTH {64} \
    CONFIG.PCW_USE_S_AXI_HP2 {1} CONFIG.PCW_S_AXI_HP2_DATA_WIDTH {64} \
    CONFIG.PCW_USE_S_AXI_HP3 {1} CONFIG.PCW_S_AXI_HP3_DATA_WIDTH {64} \
    CONFIG.PCW_USE_FABRIC_INTERRUPT {1} \
    CONFIG.PCW_IRQ_F2P_INTR {1} \
] $ps

set engine [create_bd_cell -type ip -vlnv hetrun:hls:@TOP@ engine]
set reset [create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset]

# The ports' AXI3 takes 16 beats a burst, as the engine's masters make them.
set clock_pins [list ps/M_AXI_GP0_ACLK engine/ap_clk reset/slowest_sync_clk]
set reset_pins [list engine/ap_rst_n]
foreach number {0 1 2 3} {
    set join join$number
    create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect $join
    set_property -dict [list CONFIG.NUM_SI {1} CONFIG.NUM_MI {1}] [get_bd_cells $join]
    connect_bd_intf_net [get_bd_intf_pins engine/m_axi_hp$number] [get_bd_intf_pins $join/S00_AXI]
    connect_bd_intf_net [get_bd_intf_pins $join/M00_AXI] [get_bd_intf_pins ps/S_AXI_HP$number]
    lappend clock_pins $join/aclk ps/S_AXI_HP${number}_ACLK
    lappend reset_pins $join/aresetn
}
create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect control
set_property -dict [list CONFIG.NUM_SI {1} CONFIG.NUM_MI {1}] [get_bd_cells control]
connect_bd_intf_net [get_bd_intf_pins ps/M_AXI_GP0] [get_bd_intf_pins control/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins control/M00_AXI] [get_bd_intf_pins engine/s_axi_control]
lappend clock_pins control/aclk
lappend reset_pins control/aresetn

foreach pin $clock_pins {
    connect_bd_net [get_bd_pins ps/FCLK_CLK0] [get_bd_pins $pin]
}
connect_bd_net [get_bd_pins ps/FCLK_RESET0_N] [get_bd_pins reset/ext_reset_in]
foreach pin $reset_pins {
    connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins $pin]
}
connect_bd_net [get_bd_pins engine/interrupt] [get_bd_pins ps/IRQ_F2P]

assign_bd_address -offset 0x43C00000 -range 64K -target_address_space [get_bd_addr_spaces ps/Data] \
    [get_bd_addr_segs engine/s_axi_control/Reg] -force
foreach number {0 1 2 3} {
    assign_bd_address -offset 0x00000000 -range 512M -target_address_space [get_bd_addr_spaces engine/Data_m_axi_hp$number] \
        [get_bd_addr_segs ps/S_AXI_HP$number/HP${number}_DDR_LOWOCM] -force
}
validate_bd_design
save_bd_design

set design [get_files design_1.bd]
add_files -norecurse [make_wrapper -files $design -top]
set_property top design_1_wrapper [current_fileset]
add_files -fileset constrs_1 [file join $here overlay.xdc]
update_compile_order -fileset sources_1
launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
    error "implementation failed: see vivado_project/@OVERLAY@.runs/impl_1/runme.log"
}

open_run impl_1
report_utilization -hierarchical -file utilization.rpt
report_timing_summary -file timing.rpt
set slack [get_property SLACK [get_timing_paths -max_paths 1 -setup]]
if {$slack < 0} {
    error "timing is not met at @CLOCK_MHZ@ MHz: $slack ns (timing.rpt); lower HETRUN_PYNQ_CLOCK_HZ in hls/engine.h of the sources"
}
file copy -force vivado_project/@OVERLAY@.runs/impl_1/design_1_wrapper.bit @OVERLAY@.bit
# Vivado 2020.2 and later keep made files apart from sources.
set handoffs [glob -nocomplain vivado_project/@OVERLAY@.gen/sources_1/bd/design_1/hw_handoff/design_1.hwh \
    vivado_project/@OVERLAY@.srcs/sources_1/bd/design_1/hw_handoff/design_1.hwh]
file copy -force [lindex $handoffs 0] @OVERLAY@.hwh
puts "hetrun: copy @OVERLAY@.bit and @OVERLAY@.hwh to the board"
exit
