// SPDX-License-Identifier: Apache-2.0
//
// How files are read: through the page cache, or past it (O_DIRECT), which file systems may refuse.
#ifndef Q3_RUNTIME_IO_MODE_H
#define Q3_RUNTIME_IO_MODE_H

typedef enum q3_io_mode {
    Q3_IO_AUTO, // to be decided
    Q3_IO_BUFFERED,
    Q3_IO_DIRECT
} q3_io_mode;

// "auto", "buffered", "direct".
static inline const char *q3_io_mode_name(q3_io_mode mode)
{
    return mode == Q3_IO_DIRECT ? "direct" : mode == Q3_IO_BUFFERED ? "buffered" : "auto";
}

#endif
