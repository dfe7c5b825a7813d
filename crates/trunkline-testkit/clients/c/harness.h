// What the behaviours stand on: connections whose callbacks are remembered, waiting with a bound, and failing loudly.

#ifndef TRUNKLINE_HARNESS_H
#define TRUNKLINE_HARNESS_H

#include <nats/nats.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

// A behaviour takes well under a second; the bound only has to be shorter than that of the test that runs it.
#define PATIENCE_MILLISECONDS 20000

// Messages of one subscription that are kept; what comes beyond is counted alone.
#define KEPT_MAX 2048

// One behaviour, by its name.
typedef struct {
    const char *name;
    void (*run)(void);
} behaviour;

// The behaviours of each file, up to one without a name.
extern const behaviour access_behaviours[], encryption_behaviours[], life_behaviours[], limits_behaviours[],
    services_behaviours[];

// Ends the program with what was expected and where.
_Noreturn void fail_at(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));
#define FAIL(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition) ((condition) ? (void)0 : FAIL("%s does not hold", #condition))

// The library's answer has to be this one.
void expect_status_at(const char *file, int line, const char *what, natsStatus expected, natsStatus got);
#define EXPECT(expected, call) expect_status_at(__FILE__, __LINE__, #call, expected, call)
#define OK(call) EXPECT(NATS_OK, call)

// Waits for something that callbacks, which run on threads of the library, bring about.
#define UNTIL(condition)                                                                                               \
    do {                                                                                                               \
        for (int64_t until_deadline = now_milliseconds() + PATIENCE_MILLISECONDS; !(condition); pause_briefly())       \
            if (now_milliseconds() > until_deadline) FAIL("not within %d ms: %s", PATIENCE_MILLISECONDS, #condition);  \
    } while (0)
int64_t now_milliseconds(void);
void pause_briefly(void);

// Prints one line that the test at the other end of the pipe acts upon, or one event, a JSON object.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

// A variable that the test has set.
const char *variable(const char *name);

// The server's URL.
extern const char *server_url;

// What the callbacks of one connection have said.
typedef struct {
    pthread_mutex_t lock;
    int disconnected, reconnected, closed, lame_duck, errors;
    natsStatus last_error;
    char last_error_text[512];
} story;

int told(story *story, int *count);
natsStatus last_error(story *story);

// Options for `server_url` that tell this story; the connection does not come back by itself.
natsOptions *options(story *story);
// The same for a connection that comes back at once and for ever.
natsOptions *patient_options(story *story);
// Connects, or fails; takes the options.
natsConnection *connect_with(natsOptions *options);
// Expects this answer instead of a connection; takes the options.
void refuse_with_at(const char *file, int line, natsStatus expected, natsOptions *options);
#define REFUSED(expected, options) refuse_with_at(__FILE__, __LINE__, expected, options)

// What a subscription was given.
typedef struct {
    pthread_mutex_t lock;
    int count;
    int numbers[KEPT_MAX];
    char last[256];
} collector;

void collect(natsConnection *nc, natsMsg *message, collector *into);
// Subscribes, waits until the server has dealt with it, and returns the subscription.
natsSubscription *collecting(natsConnection *nc, const char *subject, const char *queue, collector *into);
int collected(collector *collector);
void publish(natsConnection *nc, const char *subject, const char *payload);
// The connection has come back, and what it subscribed to as `still` before still arrives.
void is_back(natsConnection *nc, story *story, collector *received);
void report_story(story *story);
// A message of the connection's own goes to the server and back.
void works(natsConnection *nc, const char *subject);

#endif
