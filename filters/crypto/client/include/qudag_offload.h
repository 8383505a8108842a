/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Has ML-DSA-65 signatures verified and data hashed by qudag-sidecar, over its Unix socket and the binary protocol QDC1.
 * The layout of the protocol is in docs/crypto.md. C99 and POSIX.1-2008, no library; everything is in this header.
 *
 *     qudag_offload sidecar;
 *     if (qudag_offload_connect(&sidecar, "/run/qudag-sidecar/crypto.sock", 2000) != QUDAG_OFFLOAD_OK) ...
 *     qudag_offload_signature one = {0};
 *     one.edition = QUDAG_OFFLOAD_DRAFT; one.key = key; one.message = message; ...
 *     uint8_t verdict;
 *     if (qudag_offload_verify(&sidecar, &one, 1, &verdict) == QUDAG_OFFLOAD_OK && verdict == QUDAG_OFFLOAD_VALID) ...
 *     qudag_offload_close(&sidecar);
 *
 * A function returns QUDAG_OFFLOAD_OK, or another qudag_offload_result with a text in `error`. After QUDAG_OFFLOAD_REFUSED the connection can
 * be used further, unless the code is QUDAG_OFFLOAD_DRAINING; after any other result but QUDAG_OFFLOAD_USAGE it is closed, and is to be
 * made again. All requests can be repeated. A connection belongs to one thread at a time. A signature is valid only where a function
 * has returned QUDAG_OFFLOAD_OK and the verdict is QUDAG_OFFLOAD_VALID; in every other case verdicts are set to QUDAG_OFFLOAD_NONE.
 *
 * `timeout_ms` is how long the sidecar may take for each read and write of the socket.
 */
#ifndef QUDAG_OFFLOAD_H
#define QUDAG_OFFLOAD_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define QUDAG_OFFLOAD_KEY_BYTES 1952
#define QUDAG_OFFLOAD_KEY_ID_BYTES 32
#define QUDAG_OFFLOAD_SIGNATURE_BYTES 3309
#define QUDAG_OFFLOAD_MU_BYTES 64
#define QUDAG_OFFLOAD_FINGERPRINT_BYTES 64
#define QUDAG_OFFLOAD_MAX_HASH_BYTES 1024

typedef enum {
    QUDAG_OFFLOAD_OK = 0,
    /* Nobody listens there, or too slowly. `errno` has more. */
    QUDAG_OFFLOAD_CONNECT,
    /* The connection broke off, or an answer took too long. */
    QUDAG_OFFLOAD_BROKEN,
    /* What came is no answer to what was asked. */
    QUDAG_OFFLOAD_PROTOCOL,
    /* The sidecar refuses: `code` says why, and `retry_after_ms` when to come back if that is known. */
    QUDAG_OFFLOAD_REFUSED,
    /* The arguments make no request, or one that is longer than the sidecar takes. */
    QUDAG_OFFLOAD_USAGE
} qudag_offload_result;

/* What is said of a signature or fingerprint. */
enum {
    QUDAG_OFFLOAD_VALID = 0,
    QUDAG_OFFLOAD_LENGTH = 1,
    QUDAG_OFFLOAD_CONTEXT = 2,
    QUDAG_OFFLOAD_HINTS = 3,
    QUDAG_OFFLOAD_RANGE = 4,
    QUDAG_OFFLOAD_MISMATCH = 5,
    QUDAG_OFFLOAD_OTHER_DATA = 6,
    QUDAG_OFFLOAD_UNKNOWN_KEY = 7,
    /* No verdict. */
    QUDAG_OFFLOAD_NONE = 255
};

/* Why the sidecar refuses. */
enum {
    QUDAG_OFFLOAD_MALFORMED = 1,
    QUDAG_OFFLOAD_TOO_LARGE = 2,
    QUDAG_OFFLOAD_NOT_DONE = 3,
    QUDAG_OFFLOAD_RATE_LIMITED = 4,
    QUDAG_OFFLOAD_OVERLOADED = 5,
    QUDAG_OFFLOAD_DRAINING = 6,
    QUDAG_OFFLOAD_TIMEOUT = 7,
    QUDAG_OFFLOAD_INTERNAL = 8
};

/* By which text of FIPS 204 a signature was made. */
enum { QUDAG_OFFLOAD_DRAFT = 1, QUDAG_OFFLOAD_FINAL = 2 };

/* A connection. */
typedef struct {
    int fd;
    uint32_t next;
    /* What the sidecar takes in one request. */
    uint32_t max_body;
    uint16_t max_operations;
    /* Of the last failure. */
    uint8_t code;
    uint32_t retry_after_ms;
    char error[192];
} qudag_offload;

/* A signature to verify. Of `key` (1,952 bytes) and `key_id` (32 bytes) one is given, and of `mu` (64 bytes) and `message` as well:
 * the other one is NULL. A message of no bytes may be NULL too. The context is of the final standard and has at most 255 bytes. */
typedef struct {
    uint8_t edition;
    const uint8_t *key;
    const uint8_t *key_id;
    const uint8_t *mu;
    const uint8_t *message;
    size_t message_length;
    const uint8_t *context;
    size_t context_length;
    const uint8_t *signature;
    size_t signature_length;
} qudag_offload_signature;

/* Data to hash by BLAKE3 into `length` bytes, 1 to 1,024, at `hash`. */
typedef struct {
    const uint8_t *data;
    size_t data_length;
    uint8_t *hash;
    size_t length;
} qudag_offload_digest;

static inline const char *qudag_offload_verdict_name(uint8_t verdict)
{
    static const char *const names[] = {"valid",    "length",     "context",    "hints",
                                        "range",    "mismatch",   "other_data", "unknown_key"};
    return verdict < sizeof names / sizeof *names ? names[verdict] : "none";
}

static inline void qudag_offload_close(qudag_offload *sidecar)
{
    if (sidecar->fd >= 0)
        close(sidecar->fd);
    sidecar->fd = -1;
}

/* What follows down to `qudag_offload_connect` is for this header alone. */

static inline qudag_offload_result qudag_offload__fail(qudag_offload *sidecar, qudag_offload_result result,
                                                       const char *error)
{
    snprintf(sidecar->error, sizeof sidecar->error, "%s", error);
    if (result != QUDAG_OFFLOAD_USAGE && result != QUDAG_OFFLOAD_REFUSED)
        qudag_offload_close(sidecar);
    return result;
}

static inline uint8_t *qudag_offload__put16(uint8_t *to, uint32_t value)
{
    to[0] = (uint8_t)(value >> 8);
    to[1] = (uint8_t)value;
    return to + 2;
}

static inline uint8_t *qudag_offload__put32(uint8_t *to, uint32_t value)
{
    return qudag_offload__put16(qudag_offload__put16(to, value >> 16), value & 0xffff);
}

static inline uint8_t *qudag_offload__put(uint8_t *to, const uint8_t *bytes, size_t length)
{
    if (length > 0)
        memcpy(to, bytes, length);
    return to + length;
}

static inline uint32_t qudag_offload__get32(const uint8_t *from)
{
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | (uint32_t)from[3];
}

static inline qudag_offload_result qudag_offload__write(qudag_offload *sidecar, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(sidecar->fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_BROKEN, sent < 0 ? strerror(errno) : "nothing was sent");
        bytes += sent;
        length -= (size_t)sent;
    }
    return QUDAG_OFFLOAD_OK;
}

static inline qudag_offload_result qudag_offload__read(qudag_offload *sidecar, uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t got = recv(sidecar->fd, bytes, length, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_BROKEN,
                                       got < 0 ? strerror(errno) : "the sidecar closed the connection");
        bytes += got;
        length -= (size_t)got;
    }
    return QUDAG_OFFLOAD_OK;
}

/* Reads the reply to a request: `*body` is to be freed, with a 0 behind it. */
static inline qudag_offload_result qudag_offload__reply(qudag_offload *sidecar, uint32_t id, uint8_t sort, size_t count,
                                                        uint8_t **body, size_t *length)
{
    uint8_t header[12];
    qudag_offload_result result = qudag_offload__read(sidecar, header, sizeof header);
    *body = NULL;
    if (result != QUDAG_OFFLOAD_OK)
        return result;
    *length = qudag_offload__get32(header);
    /* 65,535 hashes of 1,024 bytes, and their lengths. */
    if (*length > (size_t)65535 * 1026)
        return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_PROTOCOL, "a reply that is too long");
    *body = malloc(*length + 1);
    if (*body == NULL)
        return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_BROKEN, "no memory for the reply");
    (*body)[*length] = 0;
    result = qudag_offload__read(sidecar, *body, *length);
    if (result == QUDAG_OFFLOAD_OK && header[8] == 255 && *length >= 8) {
        sidecar->code = (*body)[0];
        sidecar->retry_after_ms = qudag_offload__get32(*body + 4);
        result = qudag_offload__fail(sidecar, QUDAG_OFFLOAD_REFUSED, (const char *)*body + 8);
        /* One that belongs to no request is the last one. */
        if (qudag_offload__get32(header + 4) == 0 || sidecar->code == QUDAG_OFFLOAD_DRAINING)
            qudag_offload_close(sidecar);
    } else if (result == QUDAG_OFFLOAD_OK &&
               (qudag_offload__get32(header + 4) != id || header[8] != sort || header[9] != 0 ||
                (size_t)(header[10] << 8 | header[11]) != count)) {
        result = qudag_offload__fail(sidecar, QUDAG_OFFLOAD_PROTOCOL, "not the reply to the request");
    }
    if (result != QUDAG_OFFLOAD_OK) {
        free(*body);
        *body = NULL;
    }
    return result;
}

/* A request with room for a body of `length` bytes, to be freed. */
static inline qudag_offload_result qudag_offload__request(qudag_offload *sidecar, uint8_t sort, size_t count,
                                                          size_t length, uint8_t **request, uint32_t *id)
{
    uint8_t *to;
    *request = NULL;
    if (sidecar->fd < 0)
        return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_BROKEN, "not connected");
    if ((count == 0 && sort != 5) || count > sidecar->max_operations || length > sidecar->max_body) {
        qudag_offload__fail(sidecar, QUDAG_OFFLOAD_USAGE, "");
        snprintf(sidecar->error, sizeof sidecar->error,
                 "%lu operations of %lu bytes, where the sidecar takes 1 to %u of at most %lu bytes",
                 (unsigned long)count, (unsigned long)length, (unsigned)sidecar->max_operations,
                 (unsigned long)sidecar->max_body);
        return QUDAG_OFFLOAD_USAGE;
    }
    *request = malloc(12 + length);
    if (*request == NULL)
        return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_USAGE, "no memory for the request");
    *id = sidecar->next;
    sidecar->next = sidecar->next == UINT32_MAX ? 1 : sidecar->next + 1;
    to = qudag_offload__put32(*request, (uint32_t)length);
    to = qudag_offload__put32(to, *id);
    *to++ = sort;
    *to++ = 0;
    qudag_offload__put16(to, (uint32_t)count);
    return QUDAG_OFFLOAD_OK;
}

/* Sends a request, which is freed, and reads the reply. */
static inline qudag_offload_result qudag_offload__exchange(qudag_offload *sidecar, uint8_t *request, size_t length,
                                                           uint32_t id, uint8_t sort, size_t count, uint8_t **body,
                                                           size_t *body_length)
{
    qudag_offload_result result = qudag_offload__write(sidecar, request, 12 + length);
    free(request);
    *body = NULL;
    if (result != QUDAG_OFFLOAD_OK)
        return result;
    return qudag_offload__reply(sidecar, id, sort, count, body, body_length);
}

/* Connects to the socket at `path`. */
static inline qudag_offload_result qudag_offload_connect(qudag_offload *sidecar, const char *path, unsigned timeout_ms)
{
    struct sockaddr_un address;
    struct timeval timeout;
    uint8_t *welcome = NULL;
    size_t length = 0;
    qudag_offload_result result;

    memset(sidecar, 0, sizeof *sidecar);
    sidecar->fd = -1;
    sidecar->next = 1;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address.sun_path)
        return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_USAGE, "the path is too long for a socket");
    memcpy(address.sun_path, path, strlen(path));
    sidecar->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (sidecar->fd < 0)
        return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_CONNECT, strerror(errno));
    timeout.tv_sec = (time_t)(timeout_ms / 1000);
    timeout.tv_usec = (suseconds_t)(timeout_ms % 1000) * 1000;
    if (setsockopt(sidecar->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) != 0 ||
        setsockopt(sidecar->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) != 0 ||
        connect(sidecar->fd, (const struct sockaddr *)&address, sizeof address) != 0)
        return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_CONNECT, strerror(errno));
    result = qudag_offload__write(sidecar, (const uint8_t *)"QDC1", 4);
    if (result == QUDAG_OFFLOAD_OK)
        result = qudag_offload__reply(sidecar, 0, 128, 0, &welcome, &length);
    if (result == QUDAG_OFFLOAD_OK && length == 12) {
        sidecar->max_body = qudag_offload__get32(welcome);
        sidecar->max_operations = (uint16_t)(welcome[4] << 8 | welcome[5]);
    } else if (result == QUDAG_OFFLOAD_OK) {
        result = qudag_offload__fail(sidecar, QUDAG_OFFLOAD_PROTOCOL, "the first frame is no welcome");
    }
    free(welcome);
    return result;
}

/* Verifies signatures; `verdicts` has room for as many bytes as there are operations. */
static inline qudag_offload_result qudag_offload_verify(qudag_offload *sidecar, const qudag_offload_signature *operations,
                                                        size_t count, uint8_t *verdicts)
{
    size_t length = 0, i, replied = 0;
    uint8_t *request, *body, *to;
    uint32_t id = 0;
    qudag_offload_result result;

    memset(verdicts, QUDAG_OFFLOAD_NONE, count);
    for (i = 0; i < count; i++) {
        const qudag_offload_signature *one = &operations[i];
        size_t content = one->mu != NULL ? QUDAG_OFFLOAD_MU_BYTES : one->message_length;
        if ((one->edition != QUDAG_OFFLOAD_DRAFT && one->edition != QUDAG_OFFLOAD_FINAL) ||
            (one->key == NULL) == (one->key_id == NULL) ||
            (one->mu != NULL && (one->message != NULL || one->context_length > 0)) || one->context_length > 255 ||
            content > UINT32_MAX || one->signature_length > UINT32_MAX)
            return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_USAGE, "an operation that is none");
        if (content > SIZE_MAX / 4 || one->signature_length > SIZE_MAX / 4 || length > SIZE_MAX / 4)
            return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_USAGE, "more than fits into the memory");
        length += 12 + (one->key != NULL ? QUDAG_OFFLOAD_KEY_BYTES : QUDAG_OFFLOAD_KEY_ID_BYTES);
        length += one->context_length + content + one->signature_length;
    }
    result = qudag_offload__request(sidecar, 2, count, length, &request, &id);
    if (result != QUDAG_OFFLOAD_OK)
        return result;
    to = request + 12;
    for (i = 0; i < count; i++) {
        const qudag_offload_signature *one = &operations[i];
        size_t content = one->mu != NULL ? QUDAG_OFFLOAD_MU_BYTES : one->message_length;
        *to++ = one->key != NULL;
        *to++ = one->edition;
        *to++ = one->mu != NULL ? 1 : 2;
        *to++ = (uint8_t)one->context_length;
        to = qudag_offload__put32(to, (uint32_t)content);
        to = qudag_offload__put32(to, (uint32_t)one->signature_length);
        to = one->key != NULL ? qudag_offload__put(to, one->key, QUDAG_OFFLOAD_KEY_BYTES)
                              : qudag_offload__put(to, one->key_id, QUDAG_OFFLOAD_KEY_ID_BYTES);
        to = qudag_offload__put(to, one->context, one->context_length);
        to = qudag_offload__put(to, one->mu != NULL ? one->mu : one->message, content);
        to = qudag_offload__put(to, one->signature, one->signature_length);
    }
    result = qudag_offload__exchange(sidecar, request, length, id, 130, count, &body, &replied);
    if (result == QUDAG_OFFLOAD_OK && replied == count)
        memcpy(verdicts, body, count);
    else if (result == QUDAG_OFFLOAD_OK)
        result = qudag_offload__fail(sidecar, QUDAG_OFFLOAD_PROTOCOL, "not one verdict for each operation");
    free(body);
    return result;
}

/* Registers `count` keys of 1,952 bytes, one behind the other; `ids` has room for 32 bytes each. */
static inline qudag_offload_result qudag_offload_register(qudag_offload *sidecar, const uint8_t *keys, size_t count,
                                                          uint8_t *ids)
{
    size_t length = count * QUDAG_OFFLOAD_KEY_BYTES, replied = 0;
    uint8_t *request, *body;
    uint32_t id = 0;
    qudag_offload_result result = count > UINT16_MAX
        ? qudag_offload__fail(sidecar, QUDAG_OFFLOAD_USAGE, "more keys than a request can have")
        : qudag_offload__request(sidecar, 1, count, length, &request, &id);
    if (result != QUDAG_OFFLOAD_OK)
        return result;
    memcpy(request + 12, keys, length);
    result = qudag_offload__exchange(sidecar, request, length, id, 129, count, &body, &replied);
    if (result == QUDAG_OFFLOAD_OK && replied == count * QUDAG_OFFLOAD_KEY_ID_BYTES)
        memcpy(ids, body, replied);
    else if (result == QUDAG_OFFLOAD_OK)
        result = qudag_offload__fail(sidecar, QUDAG_OFFLOAD_PROTOCOL, "not one id for each key");
    free(body);
    return result;
}

/* Hashes data. */
static inline qudag_offload_result qudag_offload_hash(qudag_offload *sidecar, const qudag_offload_digest *operations,
                                                      size_t count)
{
    size_t length = 0, i, replied = 0, at = 0;
    uint8_t *request, *body, *to;
    uint32_t id = 0;
    qudag_offload_result result;

    for (i = 0; i < count; i++) {
        if (operations[i].length < 1 || operations[i].length > QUDAG_OFFLOAD_MAX_HASH_BYTES ||
            operations[i].data_length > UINT32_MAX)
            return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_USAGE, "a hash has 1 to 1024 bytes");
        if (operations[i].data_length > SIZE_MAX / 4 || length > SIZE_MAX / 4)
            return qudag_offload__fail(sidecar, QUDAG_OFFLOAD_USAGE, "more than fits into the memory");
        length += 8 + operations[i].data_length;
    }
    result = qudag_offload__request(sidecar, 4, count, length, &request, &id);
    if (result != QUDAG_OFFLOAD_OK)
        return result;
    to = request + 12;
    for (i = 0; i < count; i++) {
        to = qudag_offload__put16(to, (uint32_t)operations[i].length);
        to = qudag_offload__put16(to, 0);
        to = qudag_offload__put32(to, (uint32_t)operations[i].data_length);
        to = qudag_offload__put(to, operations[i].data, operations[i].data_length);
    }
    result = qudag_offload__exchange(sidecar, request, length, id, 132, count, &body, &replied);
    for (i = 0; i < count && result == QUDAG_OFFLOAD_OK; i++) {
        size_t here = replied - at >= 2 ? (size_t)(body[at] << 8 | body[at + 1]) : 0;
        if (here != operations[i].length || replied - at - 2 < here) {
            result = qudag_offload__fail(sidecar, QUDAG_OFFLOAD_PROTOCOL, "a hash has another length");
        } else {
            memcpy(operations[i].hash, body + at + 2, here);
            at += 2 + here;
        }
    }
    free(body);
    return result;
}

/* What the sidecar says of its service: JSON that ends with a 0, to be freed. */
static inline qudag_offload_result qudag_offload_status(qudag_offload *sidecar, char **json)
{
    uint8_t *request, *body;
    size_t length = 0;
    uint32_t id = 0;
    qudag_offload_result result = qudag_offload__request(sidecar, 5, 0, 0, &request, &id);
    *json = NULL;
    if (result != QUDAG_OFFLOAD_OK)
        return result;
    result = qudag_offload__exchange(sidecar, request, 0, id, 133, 0, &body, &length);
    if (result == QUDAG_OFFLOAD_OK)
        *json = (char *)body;
    return result;
}

#endif
