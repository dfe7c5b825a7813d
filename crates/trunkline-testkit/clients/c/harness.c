#include "harness.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *server_url;

static void fail_with(const char *file, int line, const char *format, va_list arguments) {
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, arguments);
    natsStatus status;
    const char *why = nats_GetLastError(&status);
    fprintf(stderr, " (last error of the library: %s, %s)\n", natsStatus_GetText(status), why == NULL ? "" : why);
    // Without the clean-up of the library, whose threads may be in the middle of anything.
    _Exit(1);
}

void fail_at(const char *file, int line, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail_with(file, line, format, arguments);
    va_end(arguments);
    _Exit(1);
}

void expect_status_at(const char *file, int line, const char *what, natsStatus expected, natsStatus got) {
    if (got != expected)
        fail_at(file, line, "%s: expected %s, got %s", what, natsStatus_GetText(expected), natsStatus_GetText(got));
}

int64_t now_milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void pause_briefly(void) {
    struct timespec moment = {.tv_nsec = 2000000};
    nanosleep(&moment, NULL);
}

void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

const char *variable(const char *name) {
    const char *value = getenv(name);
    if (value == NULL) FAIL("%s is not set", name);
    return value;
}

int told(story *story, int *count) {
    pthread_mutex_lock(&story->lock);
    int seen = *count;
    pthread_mutex_unlock(&story->lock);
    return seen;
}

natsStatus last_error(story *story) {
    pthread_mutex_lock(&story->lock);
    natsStatus status = story->last_error;
    pthread_mutex_unlock(&story->lock);
    return status;
}

static void count(story *story, int *what) {
    pthread_mutex_lock(&story->lock);
    *what += 1;
    pthread_mutex_unlock(&story->lock);
}

static void on_disconnected(natsConnection *nc, void *closure) {
    (void)nc;
    story *story = closure;
    count(story, &story->disconnected);
}

static void on_reconnected(natsConnection *nc, void *closure) {
    (void)nc;
    story *story = closure;
    count(story, &story->reconnected);
}

static void on_closed(natsConnection *nc, void *closure) {
    (void)nc;
    story *story = closure;
    count(story, &story->closed);
}

static void on_lame_duck(natsConnection *nc, void *closure) {
    (void)nc;
    story *story = closure;
    count(story, &story->lame_duck);
}

static void on_error(natsConnection *nc, natsSubscription *subscription, natsStatus status, void *closure) {
    (void)subscription;
    story *story = closure;
    const char *text = NULL;
    natsConnection_GetLastError(nc, &text);
    pthread_mutex_lock(&story->lock);
    story->errors += 1;
    story->last_error = status;
    snprintf(story->last_error_text, sizeof story->last_error_text, "%s", text == NULL ? "" : text);
    pthread_mutex_unlock(&story->lock);
}

natsOptions *options(story *story) {
    natsOptions *options;
    memset(story, 0, sizeof *story);
    pthread_mutex_init(&story->lock, NULL);
    OK(natsOptions_Create(&options));
    OK(natsOptions_SetURL(options, server_url));
    OK(natsOptions_SetAllowReconnect(options, false));
    OK(natsOptions_SetTimeout(options, 5000));
    OK(natsOptions_SetDisconnectedCB(options, on_disconnected, story));
    OK(natsOptions_SetReconnectedCB(options, on_reconnected, story));
    OK(natsOptions_SetClosedCB(options, on_closed, story));
    OK(natsOptions_SetLameDuckModeCB(options, on_lame_duck, story));
    OK(natsOptions_SetErrorHandler(options, on_error, story));
    return options;
}

natsOptions *patient_options(story *story) {
    natsOptions *patient = options(story);
    OK(natsOptions_SetAllowReconnect(patient, true));
    OK(natsOptions_SetMaxReconnect(patient, -1));
    OK(natsOptions_SetReconnectWait(patient, 20));
    OK(natsOptions_SetReconnectJitter(patient, 1, 1));
    return patient;
}

natsConnection *connect_with(natsOptions *options) {
    natsConnection *nc = NULL;
    OK(natsConnection_Connect(&nc, options));
    natsOptions_Destroy(options);
    return nc;
}

void refuse_with_at(const char *file, int line, natsStatus expected, natsOptions *options) {
    natsConnection *nc = NULL;
    expect_status_at(file, line, "natsConnection_Connect", expected, natsConnection_Connect(&nc, options));
    natsOptions_Destroy(options);
}

void collect(natsConnection *nc, natsMsg *message, collector *into) {
    (void)nc;
    pthread_mutex_lock(&into->lock);
    int length = natsMsg_GetDataLength(message);
    if (length >= (int)sizeof into->last) length = sizeof into->last - 1;
    memcpy(into->last, natsMsg_GetData(message), (size_t)length);
    into->last[length] = '\0';
    if (into->count < KEPT_MAX) into->numbers[into->count] = atoi(into->last);
    into->count += 1;
    pthread_mutex_unlock(&into->lock);
}

static void on_message(natsConnection *nc, natsSubscription *subscription, natsMsg *message, void *closure) {
    (void)subscription;
    collect(nc, message, closure);
    natsMsg_Destroy(message);
}

natsSubscription *collecting(natsConnection *nc, const char *subject, const char *queue, collector *into) {
    natsSubscription *subscription = NULL;
    memset(into, 0, sizeof *into);
    pthread_mutex_init(&into->lock, NULL);
    if (queue == NULL)
        OK(natsConnection_Subscribe(&subscription, nc, subject, on_message, into));
    else
        OK(natsConnection_QueueSubscribe(&subscription, nc, subject, queue, on_message, into));
    OK(natsConnection_Flush(nc));
    return subscription;
}

int collected(collector *collector) {
    pthread_mutex_lock(&collector->lock);
    int count = collector->count;
    pthread_mutex_unlock(&collector->lock);
    return count;
}

void publish(natsConnection *nc, const char *subject, const char *payload) {
    OK(natsConnection_PublishString(nc, subject, payload));
}

void works(natsConnection *nc, const char *subject) {
    collector received;
    natsSubscription *subscription = collecting(nc, subject, NULL, &received);
    publish(nc, subject, "through");
    UNTIL(collected(&received) == 1);
    OK(natsSubscription_Unsubscribe(subscription));
    // What lies on this frame must not be written to any more.
    OK(natsConnection_Flush(nc));
    natsSubscription_Destroy(subscription);
}
