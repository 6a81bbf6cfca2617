/* A TCP relay that does nothing: each accepted connection is joined to one upstream, and bytes pass both ways.
 *
 *     cc -O2 -o floor benches/peers/floor.c && ./floor LISTEN_PORT UPSTREAM_PORT [PING_SECONDS]
 *
 * It is what the kernel takes for the same connections and messages, without HTTP, policies or TLS: no proxy of the
 * comparison can take less. One thread, edge-triggered epoll, one buffer; what a peer does not take at once ends the program,
 * for messages of a benchmark are small.
 *
 * With PING_SECONDS both ends are pinged that often, which only works with WebSockets. It looks for due pings four times a
 * second, as streamgate does, and takes what begins like a pong for one, whoever was asked. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int peer_of[1 << 16];
static char buffer[1 << 16];

/* Milliseconds: how often is pinged (0: not at all), between two looks for due pings, and by browser when the next is due. */
static long long interval, next_look, due[1 << 16];
enum { LOOK = 250 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static long long now(void) {
    struct timespec it;
    clock_gettime(CLOCK_MONOTONIC, &it);
    return it.tv_sec * 1000LL + it.tv_nsec / 1000000;
}

static void pass(int to, const void *bytes, ssize_t size) {
    if (send(to, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT) != size && errno != EPIPE && errno != ECONNRESET) fail("send");
}

/* Pings both ends of what is due, and says how long to wait for the next look. */
static int look(void) {
    static const char to_browser[] = "\x89\x08" "streamga", to_upstream[] = "\x89\x88\0\0\0\0streamga";
    long long at = now();
    if (!interval || at < next_look) return interval ? next_look - at : -1;
    for (int browser = 0; browser < 1 << 16; browser++) {
        if (!due[browser] || due[browser] > at) continue;
        due[browser] += interval;
        pass(browser, to_browser, sizeof to_browser - 1);
        pass(peer_of[browser], to_upstream, sizeof to_upstream - 1);
    }
    next_look = at + LOOK;
    return LOOK;
}

static void watch(int epoll, int fd, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
}

static struct sockaddr_in loopback(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* A connection of a browser, and the one upstream that it is joined to. */
static void join(int epoll, int browser, const struct sockaddr_in *to) {
    int upstream = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (upstream < 0) fail("socket");
    if (connect(upstream, (const struct sockaddr *)to, sizeof *to)) fail("connect"); /* loopback does not keep it waiting */
    setsockopt(browser, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(upstream, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (browser >= 1 << 16 || upstream >= 1 << 16) exit(1);
    peer_of[browser] = upstream;
    peer_of[upstream] = browser;
    due[browser] = interval ? now() + interval : 0;
    watch(epoll, browser, EPOLLIN | EPOLLRDHUP | EPOLLET);
    watch(epoll, upstream, EPOLLIN | EPOLLRDHUP | EPOLLET);
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) return fprintf(stderr, "usage: floor LISTEN_PORT UPSTREAM_PORT [PING_SECONDS]\n"), 2;
    if (argc == 4) interval = atoi(argv[3]) * 1000LL;
    struct sockaddr_in here = loopback(argv[1]), there = loopback(argv[2]);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096)) fail("listen");
    watch(epoll, listener, EPOLLIN);
    for (;;) {
        struct epoll_event events[512];
        int n = epoll_wait(epoll, events, 512, look());
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int browser = accept4(listener, NULL, NULL, 0);
                if (browser >= 0) join(epoll, browser, &there);
                continue;
            }
            int peer = peer_of[fd];
            if (!peer) continue; /* closed a moment ago */
            ssize_t size = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (size > 0) {
                if (!interval || buffer[0] != '\x8a') pass(peer, buffer, size);
            } else if (size == 0 || errno != EAGAIN) {
                peer_of[fd] = peer_of[peer] = due[fd] = due[peer] = 0;
                close(fd);
                close(peer);
            }
        }
    }
}
