// SPDX-License-Identifier: Apache-2.0
#include "interrupt.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t received;

static void on_signal(int number)
{
    if (received) {
        signal(number, SIG_DFL);
        raise(number);
    }
    received = 1;
}

void q3_interrupt_install(void)
{
    // No SA_RESTART: a read that waits for a person must return.
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

bool q3_interrupted(void)
{
    return received != 0;
}

void q3_interrupt_clear(void)
{
    received = 0;
}

bool q3_check_interrupt(q3_error *err)
{
    return !received || q3_fail(err, Q3_INTERRUPTED, "interrupted");
}
