// The open ap_int.h, which takes its builtins from Vitis where __SYNTHESIS__ is defined: here it is hidden from it.
#pragma once
#pragma push_macro("__SYNTHESIS__")
#undef __SYNTHESIS__
#include_next <ap_int.h>
#pragma pop_macro("__SYNTHESIS__")
