// Loaded into every process of a server under test: writes down who looks up a name or sends beyond this machine's
// own Unix sockets, whatever library does it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what) {
    const char *path = getenv("NETWORK_GUARD");
    int file = path == NULL ? -1 : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return;
    char line[256];
    int length = snprintf(line, sizeof line, "%d %.200s\n", (int)getpid(), what);
    if (write(file, line, (size_t)length) < 0) abort();
    close(file);
}

static int leaves(const struct sockaddr *address) {
    return address != NULL && (address->sa_family == AF_INET || address->sa_family == AF_INET6);
}

__attribute__((constructor)) static void loaded(void) { note("loaded"); }

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    static int (*real)(int, const struct sockaddr *, socklen_t);
    if (real == NULL) real = dlsym(RTLD_NEXT, "connect");
    if (leaves(address)) note("connect");
    return real(socket, address, length);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (real == NULL) real = dlsym(RTLD_NEXT, "sendto");
    if (leaves(address)) note("sendto");
    return real(socket, data, size, flags, address, length);
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (real == NULL) real = dlsym(RTLD_NEXT, "getaddrinfo");
    // An address in digits is no name to look up.
    char what[256];
    snprintf(what, sizeof what, "getaddrinfo %.200s", host == NULL ? "" : host);
    if (host != NULL && strspn(host, "0123456789.:abcdef") != strlen(host)) note(what);
    return real(host, service, hints, found);
}
