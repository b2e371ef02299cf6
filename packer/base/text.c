// SPDX-License-Identifier: Apache-2.0
#include "text.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t q3_utf8_length(const uint8_t *text, size_t size)
{
    if (size == 0)
        return 0;
    const uint8_t lead = text[0];
    if (lead < 0x80)
        return 1;
    size_t length;
    uint8_t low = 0x80, high = 0xbf; // the range of the second byte
    if (lead >= 0xc2 && lead <= 0xdf) {
        length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
        length = 3;
        if (lead == 0xe0)
            low = 0xa0;
        else if (lead == 0xed)
            high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
        length = 4;
        if (lead == 0xf0)
            low = 0x90;
        else if (lead == 0xf4)
            high = 0x8f;
    } else {
        return 0;
    }
    if (size < length || text[1] < low || text[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if (text[i] < 0x80 || text[i] > 0xbf)
            return 0;
    return length;
}

bool q3_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
    if (*text == 0 || strspn(text, "0123456789") != strlen(text))
        return false;
    errno = 0;
    const unsigned long long number = strtoull(text, NULL, 10);
    if (errno || number < min || number > max)
        return false;
    *value = number;
    return true;
}

bool q3_parse_double(const char *text, double min, double max, double *value)
{
    // No hexadecimal, no "nan", no "inf", no blanks: strtod takes more than people mean.
    if (*text == 0 || strspn(text, "+-.0123456789eE") != strlen(text))
        return false;
    char *end;
    errno = 0;
    const double number = strtod(text, &end);
    if (*end || errno || !(number >= min && number <= max))
        return false;
    *value = number;
    return true;
}

bool q3_parse_size(const char *text, uint64_t *bytes)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    const double number = strtod(text, &end);
    while (*end == ' ')
        end++;
    double unit = 1;
    if (*end) {
        static const char suffixes[] = "KMGT";
        const char *suffix = strchr(suffixes, toupper((unsigned char)*end));
        if (suffix) {
            for (int i = 0; i <= suffix - suffixes; i++)
                unit *= 1024;
            end++;
            if (*end == 'i')
                end++;
        }
        if (*end == 'B' || *end == 'b')
            end++;
        if (*end)
            return false;
    }
    if (!(number * unit < 9e18))
        return false;
    *bytes = (uint64_t)(number * unit);
    return true;
}

bool q3_parse_ranges(const char *what, const char *text, uint32_t count, bool *members,
                     q3_error *err)
{
    for (uint32_t i = 0; i < count && !text; i++)
        members[i] = true;
    if (!text)
        return true;
    const char *at = text;
    for (;;) {
        uint64_t bound[2];
        int bounds = 0;
        do {
            if (bounds)
                at++;
            char digits[11];
            const size_t length = strspn(at, "0123456789");
            if (length == 0 || length >= sizeof digits)
                return q3_fail(err, Q3_USAGE,
                               "%s: \"%s\" is not a list of numbers and ranges such as 0-7,12",
                               what, text);
            memcpy(digits, at, length);
            digits[length] = 0;
            q3_parse_u64(digits, 0, UINT64_MAX, &bound[bounds++]);
            at += length;
        } while (*at == '-' && bounds == 1);
        const uint64_t first = bound[0], last = bound[bounds - 1];
        if (first > last)
            return q3_fail(err, Q3_USAGE, "%s: range %" PRIu64 "-%" PRIu64 " runs backwards", what,
                           first, last);
        if (last >= count)
            return q3_fail(err, Q3_USAGE, "%s: %" PRIu64 " is out of range, the last is %" PRIu32,
                           what, last, count - 1);
        for (uint64_t i = first; i <= last; i++)
            members[i] = true;
        if (*at == 0)
            return true;
        if (*at != ',')
            return q3_fail(err, Q3_USAGE,
                           "%s: \"%s\" is not a list of numbers and ranges such as 0-7,12", what,
                           text);
        at++;
    }
}

const char *q3_grouped(uint64_t value, char out[Q3_GROUPED_MAX])
{
    char digits[24];
    const int length = snprintf(digits, sizeof digits, "%" PRIu64, value);
    char *to = out;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            *to++ = ',';
        *to++ = digits[i];
    }
    *to = 0;
    return out;
}

const char *q3_human_bytes(uint64_t bytes, char out[Q3_GROUPED_MAX])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 999.95 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1000;
        unit++;
    }
    snprintf(out, Q3_GROUPED_MAX, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return out;
}
