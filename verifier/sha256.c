// SPDX-License-Identifier: Apache-2.0
#include "sha256.h"

#include "base/file.h"
#include "base/interrupt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef Q3_HAVE_NETTLE
#include <nettle/sha2.h>

bool q3_sha256_file(const char *path, uint8_t digest[Q3_SHA256_BYTES], uint64_t *size,
                    q3_error *err)
{
    enum { PIECE = 256 * 1024 };
    q3_file file;
    if (!q3_file_open(path, &file, err))
        return false;
    uint8_t *piece = q3_alloc(PIECE, 1, err);
    bool ok = piece != NULL;
    struct sha256_ctx context;
    sha256_init(&context);
    for (uint64_t at = 0; ok && at < file.size;) {
        const size_t bytes = file.size - at < PIECE ? (size_t)(file.size - at) : PIECE;
        ok = q3_check_interrupt(err) && q3_file_read(&file, at, piece, bytes, err);
        if (ok)
            sha256_update(&context, bytes, piece);
        at += bytes;
    }
    sha256_digest(&context, Q3_SHA256_BYTES, digest);
    *size = file.size;
    free(piece);
    q3_file_close(&file);
    return ok;
}

#else

bool q3_sha256_file(const char *path, uint8_t digest[Q3_SHA256_BYTES], uint64_t *size,
                    q3_error *err)
{
    memset(digest, 0, Q3_SHA256_BYTES);
    *size = 0;
    return q3_fail(err, Q3_FAILED, "%s: built without Nettle: cannot compute SHA-256", path);
}

#endif

const char *q3_sha256_text(const uint8_t digest[Q3_SHA256_BYTES], char out[Q3_SHA256_TEXT])
{
    for (unsigned i = 0; i < Q3_SHA256_BYTES; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
    return out;
}

bool q3_sha256_parse(const char *text, uint8_t digest[Q3_SHA256_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    if (strlen(text) != 2 * Q3_SHA256_BYTES || text[strspn(text, digits)])
        return false;
    for (unsigned i = 0; i < Q3_SHA256_BYTES; i++)
        digest[i] = (uint8_t)((strchr(digits, text[2 * i]) - digits) << 4 |
                              (strchr(digits, text[2 * i + 1]) - digits));
    return true;
}
