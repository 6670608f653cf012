# The engine as IP, with Vitis HLS 2021.2 or later:   vitis_hls -f hls.tcl
# (From 2024.2 on: vitis-run --mode hls --tcl hls.tcl.) Parameters are those of hls/engine.h.

set here [file dirname [file normalize [info script]]]
cd $here

open_project -reset hls_project
set_top @TOP@
# It includes the other files of its folder, and those of fabric/.
add_files [file join $here hls engine.cpp] -cflags "-std=c++17 -I$here"
open_solution -reset -flow_target vivado solution
set_part @PART@
create_clock -period @CLOCK_NS@ -name default
set_clock_uncertainty 12.5%
# The board's physical addresses have 32 bits.
config_interface -m_axi_addr64=false
config_rtl -reset control

csynth_design

# The driver uses the offsets of hls/engine.h: the registers that were made must have them.
set headers [glob -nocomplain hls_project/solution/impl/misc/drivers/*/src/*_hw.h hls_project/solution/impl/ip/drivers/*/src/*_hw.h]
proc check_registers {files registers} {
    if {[llength $files] == 0} {
        error "no driver header (*_hw.h) of the engine was made: the registers cannot be checked"
    }
    set channel [open [lindex $files 0]]
    set text [read $channel]
    close $channel
    foreach {name offset} $registers {
        if {![regexp -nocase "_ADDR_${name}_DATA\\s+(0x\[0-9a-f\]+)" $text line made]} {
            error "register $name is not in the engine that was made"
        }
        if {$made != $offset} {
            error "register $name is at $made, hls/engine.h has it at $offset"
        }
    }
}

export_design -format ip_catalog -vendor hetrun -library hls -ipname @TOP@ -version @VERSION@.0 -rtl verilog
if {[llength $headers] == 0} {
    set headers [glob -nocomplain hls_project/solution/impl/misc/drivers/*/src/*_hw.h hls_project/solution/impl/ip/drivers/*/src/*_hw.h]
}
check_registers $headers {@REGISTERS@}
puts "hetrun: the engine is in hls_project/solution/impl/ip; next: vivado -mode batch -source vivado.tcl"
exit
