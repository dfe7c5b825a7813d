// How libnats behaves where a server shows itself: at the door, under TLS, when it goes away or cuts somebody off.
//
//     behaviours URL BEHAVIOUR     shows one behaviour; prints `ok BEHAVIOUR` and exits with 0 when it holds
//     behaviours --list            prints the names of all behaviours
//
// Lines that start with `{` are what the client saw, one JSON object each; other lines ask the test to do something to
// the server, or to this process. Nothing here is particular to one server. The names are the ones of every other client.

#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const behaviour *const ALL[] = {access_behaviours, encryption_behaviours, life_behaviours, limits_behaviours,
                                       services_behaviours};

int main(int count, char **arguments) {
    bool list = count == 2 && strcmp(arguments[1], "--list") == 0;
    if (!list && count != 3) {
        fprintf(stderr, "usage: %s URL BEHAVIOUR, or %s --list\n", arguments[0], arguments[0]);
        return 2;
    }
    for (size_t file = 0; file < sizeof ALL / sizeof ALL[0]; file++) {
        for (const behaviour *each = ALL[file]; each->name != NULL; each++) {
            if (list) {
                puts(each->name);
            } else if (strcmp(each->name, arguments[2]) == 0) {
                server_url = arguments[1];
                each->run();
                say("ok %s", each->name);
                // The connections end with the process: libnats would otherwise wait for its own threads.
                _Exit(0);
            }
        }
    }
    if (!list) FAIL("nobody knows the behaviour %s", arguments[2]);
    return 0;
}
