// AVX2 with dot products of bytes: as AVX2, but that codes of 8 bits are as good as any.
#pragma once

#define HETRUN_VNNI 1

#include "avx2.h"
