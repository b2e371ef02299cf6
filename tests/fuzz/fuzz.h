// SPDX-License-Identifier: Apache-2.0
//
// What the fuzz targets share. A target is one file with LLVMFuzzerTestOneInput: it gives an input
// of whatever content to a parser, and where the parser accepts it, checks what must hold then. It
// is linked with libFuzzer, or with replay.c, which runs the corpus and mutations of it.
#ifndef Q3_FUZZ_H
#define Q3_FUZZ_H

#include "base/bytes.h"
#include "base/error.h"
#include "model/inventory.h"

// The entry point, as libFuzzer calls it. Returns 0.
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Ends the program with a message when a property does not hold.
#define FUZZ_CHECK(condition) \
    ((condition) ? (void)0 : fuzz_violated(__FILE__, __LINE__, #condition))
_Noreturn void fuzz_violated(const char *file, int line, const char *condition);

// Inputs of several parts: takes what comes before the next byte 0xff, which no UTF-8 holds, off
// *rest. Without one it takes all, and nothing is left.
q3_bytes fuzz_take_part(q3_bytes *rest);

// A copy of exactly the input's size, so that a sanitizer sees a read behind it. To free().
uint8_t *fuzz_copy(q3_bytes bytes);

// An empty directory in memory where the system has such (/dev/shm), removed at exit with what
// fuzz_write put there; the same one for each call.
const char *fuzz_directory(void);
// The path of a file in that directory; the string stays the function's and is made anew by the
// next call.
const char *fuzz_path(const char *name);
// Writes a file there: `bytes`, then a hole up to `size` where that is more.
void fuzz_write(const char *name, q3_bytes bytes, uint64_t size);
void fuzz_remove(const char *name);

// Checks an inventory against itself: totals, and names to ordinals and back (of all of a small
// inventory's tensors, of a sample of a large one's).
void fuzz_check_inventory(const q3_inventory *inventory);

#endif
