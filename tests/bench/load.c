/* load: an HTTP/1.1 client that costs little, so that the proxy is what is measured.
 *
 *   load once  CONNECTIONS PORT PATH [-s SIZE]             each connection asks once, all of them at the same time
 *   load loop  CONNECTIONS PORT PATH -t SECONDS [-r BYTES -s SIZE]
 *                                                          each asks again and again; with -r for a range at random
 *   load list  CONNECTIONS PORT PATH -c COUNT [-s SIZE]    # in PATH becomes 0 to COUNT-1; the connections share them
 *   load stall CONNECTIONS PORT PATH                       each reads a head and no more, until standard input ends
 *
 * SIZE is that of the whole object, and each answer must have the length that follows. One thread, epoll; the kernel
 * throws the bodies away (MSG_TRUNC), which is 0.1 CPU s per GiB where copying them costs as much as many a proxy.
 * Prints one line of JSON: seconds, requests, bytes, cpu (s), first_byte (s, median, from the question to the first
 * byte of the body), p50 and p99 (s, from the question to the end of the answer), error (the first one, or null). */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 8192, PIECE_BYTES = 4 << 20, EVENTS = 256, STALLED_BYTES = 64 << 10, PATIENCE_SECONDS = 300 };

enum state { CONNECTING, HEAD, BODY, OVER };

struct connection {
    int fd;
    enum state state;
    char head[HEAD_BYTES];
    size_t head_bytes;
    long long left; /* bytes of the body still to come */
    double asked, first_byte;
};

struct times {
    float *seconds;
    size_t count, room;
};

static enum { ONCE, LOOP, LIST, STALL } mode;
static const char *const MODES[] = {"once", "loop", "list", "stall"};
static int port, epoll_fd, live;
static const char *path;
static long long size = -1, range_bytes, count, asked_for, requests, bytes;
static double began, ended, seconds_wanted;
static struct times first_bytes, answers;
static char error[256];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void note(struct times *times, double seconds) {
    if (times->count == times->room) {
        times->room = times->room ? 2 * times->room : 1 << 16;
        times->seconds = realloc(times->seconds, times->room * sizeof *times->seconds);
        if (!times->seconds) abort();
    }
    times->seconds[times->count++] = seconds;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Sorts them. */
static double quantile(struct times *times, double part) {
    if (!times->count) return 0;
    qsort(times->seconds, times->count, sizeof *times->seconds, by_size);
    return times->seconds[(size_t)(part * (times->count - 1))];
}

static unsigned long long random_bits(void) { /* xorshift64: each run asks for the same ranges */
    static unsigned long long bits = 88172645463325252ULL;
    bits ^= bits << 13;
    bits ^= bits >> 7;
    return bits ^= bits << 17;
}

static void over(struct connection *c) {
    c->state = OVER;
    ended = now();
    live--;
    close(c->fd);
}

static void fail(struct connection *c, const char *why) {
    if (!*error) snprintf(error, sizeof error, "%s", why);
    over(c);
}

/* Ask for the next object, or close the connection if there is none. */
static void ask(struct connection *c) {
    char request[2048], range[80] = "";
    const char *number = mode == LIST ? strchr(path, '#') : NULL;
    bool is_last = mode == LOOP ? now() - began >= seconds_wanted : asked_for >= count;
    if (is_last) {
        over(c);
        return;
    }
    if (range_bytes) {
        unsigned long long start = random_bits() % (size - range_bytes + 1);
        snprintf(range, sizeof range, "Range: bytes=%llu-%llu\r\n", start, start + range_bytes - 1);
    }
    int length;
    if (number)
        length = snprintf(request, sizeof request, "GET %.*s%lld%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n",
                          (int)(number - path), path, asked_for, number + 1, port);
    else
        length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n", path, port, range);
    asked_for++;
    c->state = HEAD;
    c->head_bytes = 0;
    c->first_byte = 0;
    c->asked = now();
    if (send(c->fd, request, length, MSG_NOSIGNAL) != length) fail(c, "the connection broke");
}

static void answered(struct connection *c) {
    double time = now();
    requests++;
    note(&answers, time - c->asked);
    note(&first_bytes, c->first_byte - c->asked);
    if (mode == ONCE)
        over(c);
    else
        ask(c);
}

static void got(struct connection *c, long long length) {
    if (!c->first_byte) c->first_byte = now();
    bytes += length;
    c->left -= length;
    if (c->left < 0)
        fail(c, "more bytes came than Content-Length says");
    else if (!c->left)
        answered(c);
}

static void read_head(struct connection *c) {
    ssize_t length = recv(c->fd, c->head + c->head_bytes, HEAD_BYTES - 1 - c->head_bytes, 0);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) {
        fail(c, "the connection ended before the answer");
        return;
    }
    c->head_bytes += length;
    c->head[c->head_bytes] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if (c->head_bytes == HEAD_BYTES - 1) fail(c, "the head of the answer has no end");
        return;
    }
    *end = 0;
    char why[128], *field = strcasestr(c->head, "\r\nContent-Length:");
    int status = atoi(c->head + strcspn(c->head, " "));
    long long expected = range_bytes ? range_bytes : size;
    c->left = field ? atoll(field + strlen("\r\nContent-Length:")) : -1;
    if (status != (range_bytes ? 206 : 200)) {
        snprintf(why, sizeof why, "status %d", status);
        fail(c, why);
    } else if (c->left < 0 || (size >= 0 && c->left != expected)) {
        snprintf(why, sizeof why, "Content-Length: %lld where %lld is right", c->left, expected);
        fail(c, why);
    } else {
        c->state = BODY;
        size_t ahead = c->head + c->head_bytes - (end + 4);
        if (mode == STALL) {
            requests++;
            epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        } else if (ahead || !c->left)
            got(c, ahead);
    }
}

static void read_body(struct connection *c) {
    static char nowhere[PIECE_BYTES];
    ssize_t length = recv(c->fd, nowhere, c->left < PIECE_BYTES ? c->left : PIECE_BYTES, MSG_TRUNC);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0)
        fail(c, "the connection ended within a body");
    else
        got(c, length);
}

static void start(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, room = STALLED_BYTES;
    c->state = CONNECTING;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    live++;
    if (c->fd < 0) {
        fail(c, "no more sockets: raise `ulimit -n`");
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (mode == STALL) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    if ((connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event))
        fail(c, "no connection");
}

static void connected(struct connection *c) {
    int failed = 0;
    socklen_t length = sizeof failed;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &failed, &length);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (failed || epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event))
        fail(c, "no connection");
    else
        ask(c);
}

static void print(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    printf("{\"seconds\": %.6f, \"requests\": %lld, \"bytes\": %lld, \"cpu\": %.3f, \"first_byte\": %.6f, "
           "\"p50\": %.6f, \"p99\": %.6f, \"error\": %s%s%s}\n",
           ended - began, requests, bytes, cpu, quantile(&first_bytes, .5), quantile(&answers, .5),
           quantile(&answers, .99), *error ? "\"" : "", *error ? error : "null", *error ? "\"" : "");
    fflush(stdout);
}

int main(int words, char **word) {
    int option, found = -1;
    while ((option = getopt(words, word, "s:t:r:c:")) != -1) {
        if (option == 's') size = atoll(optarg);
        if (option == 't') seconds_wanted = atof(optarg);
        if (option == 'r') range_bytes = atoll(optarg);
        if (option == 'c') count = atoll(optarg);
        if (option == '?') return 2;
    }
    for (int i = 0; words - optind == 4 && i < 4; i++)
        if (!strcmp(word[optind], MODES[i])) found = i;
    if (found < 0 || (range_bytes && size < range_bytes)) {
        fprintf(stderr, "usage: see the top of load.c\n");
        return 2;
    }
    mode = found;
    int connections = atoi(word[optind + 1]);
    port = atoi(word[optind + 2]);
    path = word[optind + 3];
    if (mode == ONCE || mode == STALL) count = connections;

    struct connection *all = calloc(connections, sizeof *all);
    if (!all || (epoll_fd = epoll_create1(0)) < 0) abort();
    began = ended = now();
    for (int i = 0; i < connections; i++) start(&all[i]);
    while (live && !(mode == STALL && requests == live)) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll_fd, events, EVENTS, 1000);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->state == CONNECTING)
                connected(c);
            else if (c->state == HEAD)
                read_head(c);
            else if (c->state == BODY)
                read_body(c);
        }
        if (now() - began > PATIENCE_SECONDS + seconds_wanted) {
            for (int i = 0; i < connections; i++)
                if (all[i].state != OVER) fail(&all[i], "it takes too long");
        }
    }
    if (mode == STALL) ended = now();
    print();
    if (mode == STALL) getchar();
    return 0;
}
