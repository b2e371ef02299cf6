// SPDX-License-Identifier: Apache-2.0
//
// SIGINT and SIGTERM end a program at the next safe point, with exit code 130 and nothing half-done
// under a final name. A second signal ends it at once.
#ifndef Q3_BASE_INTERRUPT_H
#define Q3_BASE_INTERRUPT_H

#include "error.h"

// Installs the handlers; called once by main. SIGPIPE is ignored: a closed pipe is a write error.
void q3_interrupt_install(void);

// Has a signal come?
bool q3_interrupted(void);
// Forgets it: an interactive program that has stopped what it was doing goes on.
void q3_interrupt_clear(void);

// True to go on; false with "interrupted" (Q3_INTERRUPTED) once a signal has come.
bool q3_check_interrupt(q3_error *err);

#endif
