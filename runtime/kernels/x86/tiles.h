// SPDX-License-Identifier: Apache-2.0
//
// AMX tiles, for the sources that use them. gcc's tile intrinsics do not say that they read memory;
// what is here makes up for that.
#ifndef Q3_KERNELS_X86_TILES_H
#define Q3_KERNELS_X86_TILES_H

#include <stddef.h>
#include <stdint.h>

enum {
    TILE = 16,         // lines of a tile, and numbers of float32 in a line
    TILE_BYTES = 1024, // 16 lines of 64 bytes
};

// Tiles 0 to 5 have `height` lines, 1 to 16, and 6 and 7 have 16. _tile_release ends that.
static inline void configure_tiles(size_t height)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t line_bytes[16];
        uint8_t lines[16];
    } config = {.palette = 1};
    for (unsigned i = 0; i < 8; i++) {
        config.line_bytes[i] = 64;
        config.lines[i] = (uint8_t)(i < 6 ? height : TILE);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

// To be called between stores to memory and tile loads of it.
static inline void settle(void)
{
    __asm__ volatile("" ::: "memory");
}

#endif
