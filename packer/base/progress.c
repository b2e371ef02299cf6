// SPDX-License-Identifier: Apache-2.0
#include "progress.h"

#include "text.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

double q3_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void q3_progress_begin(q3_progress *progress, const char *verb, uint64_t total, bool quiet)
{
    *progress = (q3_progress){.verb = verb, .total = total, .started = q3_now()};
    progress->shown = !quiet && isatty(STDERR_FILENO);
    struct winsize size;
    progress->width = 80;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col)
        progress->width = size.ws_col;
}

static const char *amount(const q3_progress *progress, uint64_t value, char out[Q3_GROUPED_MAX])
{
    return progress->unit ? q3_grouped(value, out) : q3_human_bytes(value, out);
}

static void draw(const q3_progress *progress, const char *what, double elapsed)
{
    char done[Q3_GROUPED_MAX], total[Q3_GROUPED_MAX], rate[Q3_GROUPED_MAX], line[512];
    const double speed = elapsed > 0 ? (double)progress->done / elapsed : 0;
    const double left = speed > 0 ? (double)(progress->total - progress->done) / speed : 0;
    const unsigned seconds = left < 359999 ? (unsigned)(left + 0.5) : 359999;
    char remaining[32];
    if (seconds >= 3600)
        snprintf(remaining, sizeof remaining, "%u:%02u:%02u left", seconds / 3600,
                 seconds / 60 % 60, seconds % 60);
    else
        snprintf(remaining, sizeof remaining, "%u:%02u left", seconds / 60, seconds % 60);
    // What matters most stands first: a narrow terminal cuts the end off.
    snprintf(line, sizeof line, "%s %3.0f%%  %s of %s%s%s  %s/s  %s  %s", progress->verb,
             progress->total ? 100.0 * (double)progress->done / (double)progress->total : 100.0,
             amount(progress, progress->done, done), amount(progress, progress->total, total),
             progress->unit ? " " : "", progress->unit ? progress->unit : "",
             amount(progress, (uint64_t)speed, rate), remaining, what);
    const size_t room = progress->width > 1 ? progress->width - 1 : 1;
    if (strlen(line) > room)
        line[room] = 0;
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
}

void q3_progress_add(q3_progress *progress, uint64_t more, const char *what)
{
    progress->done += more;
    if (!progress->shown)
        return;
    const double now = q3_now();
    if (now - progress->drawn < 0.1)
        return;
    progress->drawn = now;
    draw(progress, what, now - progress->started);
}

void q3_progress_end(q3_progress *progress)
{
    if (progress->shown && progress->drawn > 0)
        fputs("\r\033[K", stderr);
    progress->shown = false;
}
