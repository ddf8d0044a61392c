/* The frames client in C; see shoal.h for what it offers, and docs/frames.md for the bytes. */
#define _POSIX_C_SOURCE 200809L
#include "shoal.h"

#include "shoal_frames.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

static const size_t ANSWER_LIMIT = (size_t)256 << 20;

struct shoal_client {
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    int socket; /* -1 while not connected */
    int timeout_ms;
    uint64_t last_id;
    unsigned unanswered;
    shoal_failure failure;
};

/* ---- failures ---- */

static int fail(shoal_client *client, const char *kind, const char *format, ...)
{
    va_list arguments;
    memset(&client->failure, 0, sizeof client->failure);
    snprintf(client->failure.kind, sizeof client->failure.kind, "%s", kind);
    va_start(arguments, format);
    vsnprintf(client->failure.text, sizeof client->failure.text, format, arguments);
    va_end(arguments);
    return -1;
}

/* What is on its way on this connection is lost. */
static int drop(shoal_client *client, const char *kind, const char *what)
{
    int number = errno;
    if (client->socket >= 0)
        close(client->socket);
    client->socket = -1;
    client->unanswered = 0;
    return fail(client, kind, "%s: %s%s%s", client->path, what, number ? ": " : "", number ? strerror(number) : "");
}

const shoal_failure *shoal_error(const shoal_client *client) { return &client->failure; }

shoal_tensor shoal_tensor_of(const char *name, shoal_datatype datatype, uint32_t axes, const uint64_t *shape,
                             const void *data, size_t size)
{
    shoal_tensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.name = name;
    tensor.datatype = datatype;
    tensor.axes = axes;
    if (axes <= SHOAL_MAX_AXES)
        memcpy(tensor.shape, shape, axes * sizeof *shape);
    tensor.data = data;
    tensor.size = size;
    return tensor;
}

/* ---- the connection ---- */

shoal_client *shoal_connect(const char *path, int timeout_ms)
{
    shoal_client *client = calloc(1, sizeof *client);
    if (!client)
        return NULL;
    /* One that does not fit is cut, and so refused with the first request: nobody listens there. */
    snprintf(client->path, sizeof client->path, "%s", path);
    client->timeout_ms = timeout_ms > 0 ? timeout_ms : 30000;
    client->socket = -1;
    return client;
}

void shoal_close(shoal_client *client)
{
    if (!client)
        return;
    if (client->socket >= 0)
        close(client->socket);
    free(client);
}

static int open_connection(shoal_client *client)
{
    struct sockaddr_un address;
    struct timeval patience;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, client->path, sizeof address.sun_path);
    patience.tv_sec = client->timeout_ms / 1000;
    patience.tv_usec = client->timeout_ms % 1000 * 1000;
    client->socket = socket(AF_UNIX, SOCK_STREAM, 0);
    if (client->socket < 0)
        return drop(client, "NetworkError", "no socket");
    setsockopt(client->socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(client->socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(client->socket, (struct sockaddr *)&address, sizeof address) != 0)
        return drop(client, "NetworkError", "does the agent run, and is frames_socket in its settings this path?");
    return 0;
}

static int send_parts(shoal_client *client, struct iovec *parts, size_t count)
{
    while (count) {
        struct msghdr message;
        ssize_t sent;
        memset(&message, 0, sizeof message);
        message.msg_iov = parts;
        message.msg_iovlen = count;
        sent = sendmsg(client->socket, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return -1;
        while (count && (size_t)sent >= parts->iov_len) {
            sent -= (ssize_t)parts->iov_len;
            parts++;
            count--;
        }
        if (count) {
            parts->iov_base = (char *)parts->iov_base + sent;
            parts->iov_len -= (size_t)sent;
        }
    }
    return 0;
}

static int receive_exactly(shoal_client *client, unsigned char *to, size_t size)
{
    while (size) {
        ssize_t count = recv(client->socket, to, size, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) {
            if (count == 0)
                errno = ECONNRESET;
            return drop(client, errno == EAGAIN || errno == EWOULDBLOCK ? "DeadlineExceeded" : "NetworkError",
                        "no answer");
        }
        to += count;
        size -= (size_t)count;
    }
    return 0;
}

int shoal_receive(shoal_client *client, shoal_answer *answer)
{
    unsigned char length[LENGTH_BYTES], *memory;
    shoal_failure failure;
    size_t size;
    mp_reader in;
    int failed_request;
    memset(answer, 0, sizeof *answer);
    memset(&failure, 0, sizeof failure);
    answer->model = answer->version = answer->package = answer->request = "";
    if (client->socket < 0)
        return fail(client, "NetworkError", "%s: nothing was sent", client->path);
    if (receive_exactly(client, length, sizeof length) != 0)
        return -1;
    size = length[0] | (size_t)length[1] << 8 | (size_t)length[2] << 16 | (size_t)length[3] << 24;
    errno = 0;
    if (size > ANSWER_LIMIT)
        return drop(client, "MessageError", "an answer too large to be one");
    /* Where malloc gives a multiple of 8, values lie at one too: they are counted from the length field on. */
    memory = malloc(LENGTH_BYTES + size + 1);
    if (!memory)
        return drop(client, "MessageError", "no memory for the answer");
    memcpy(memory, length, LENGTH_BYTES);
    if (receive_exactly(client, memory + LENGTH_BYTES, size) != 0) {
        free(memory);
        return -1;
    }
    in.at = memory + LENGTH_BYTES;
    in.end = in.at + size;
    in.failed = 0;
    failed_request = sf_read_answer(&in, answer, &failure);
    client->unanswered -= client->unanswered > 0;
    answer->memory = memory;
    if (in.failed || failed_request) {
        shoal_answer_free(answer);
        errno = 0;
        if (in.failed)
            return drop(client, "MessageError", "what came is no answer");
        if (failure.id == 0)
            drop(client, "NetworkError", "closed by the agent");
        client->failure = failure;
        return -1;
    }
    return 0;
}

void shoal_answer_free(shoal_answer *answer)
{
    free(answer->memory);
    memset(answer, 0, sizeof *answer);
}

/* ---- requests ---- */

/* Send a frame that is whole; connect, or connect again where the agent has restarted. */
static int send_frame(shoal_client *client, const struct iovec *parts, size_t count)
{
    struct iovec copy[1 + 2 * SHOAL_MAX_TENSORS];
    int reused = client->socket >= 0 && client->unanswered == 0;
    for (;;) {
        shoal_answer words;
        if (client->socket < 0 && open_connection(client) != 0)
            return -1;
        memcpy(copy, parts, count * sizeof *copy);
        if (send_parts(client, copy, count) == 0) {
            client->unanswered++;
            return 0;
        }
        if (errno != EPIPE && errno != ECONNRESET)
            return drop(client, errno == EAGAIN ? "DeadlineExceeded" : "NetworkError", "the request cannot be sent");
        if (!reused) {
            /* The agent may have said why before it closed. */
            if (shoal_receive(client, &words) == 0)
                shoal_answer_free(&words);
            return -1;
        }
        drop(client, "NetworkError", "the agent has restarted");
        reused = 0;
    }
}

static int send_written(shoal_client *client, mp_writer *out)
{
    struct iovec part;
    int result;
    if (out->failed) {
        free(out->bytes);
        return fail(client, "DeviceError", "no memory for a request");
    }
    sf_set_length(out, out->size - LENGTH_BYTES);
    part.iov_base = out->bytes;
    part.iov_len = out->size;
    result = send_frame(client, &part, 1);
    free(out->bytes);
    return result;
}

int shoal_send(shoal_client *client, const shoal_request *request, uint64_t *id)
{
    mp_writer out = {NULL, 0, 0, 0};
    struct iovec parts[2 * SHOAL_MAX_TENSORS];
    size_t ends[SHOAL_MAX_TENSORS], values = 0, begin_at = 0;
    uint32_t index;
    int result;
    if (request->input_count < 1 || request->input_count > SHOAL_MAX_TENSORS)
        return fail(client, "MalformedRequest", "a request has 1 to %d inputs", SHOAL_MAX_TENSORS);
    *id = ++client->last_id;
    sf_begin(&out, "infer", *id, sf_option_count(request));
    sf_put_options(&out, request);
    mp_put_text(&out, "inputs");
    mp_put_array(&out, request->input_count);
    for (index = 0; index < request->input_count; index++) {
        const shoal_tensor *tensor = &request->inputs[index];
        if (tensor->axes > SHOAL_MAX_AXES || tensor->size > UINT32_MAX) {
            free(out.bytes);
            return fail(client, "MalformedRequest", "input '%s': too many axes or bytes", tensor->name);
        }
        sf_put_tensor_head(&out, tensor, values);
        ends[index] = out.size;
        values += tensor->size;
    }
    if (out.failed || out.size + values > UINT32_MAX) {
        free(out.bytes);
        return fail(client, "DeviceError", "no memory for a request");
    }
    sf_set_length(&out, out.size + values - LENGTH_BYTES);
    for (index = 0; index < request->input_count; index++) {
        parts[2 * index].iov_base = out.bytes + begin_at;
        parts[2 * index].iov_len = ends[index] - begin_at;
        parts[2 * index + 1].iov_base = (void *)(uintptr_t)request->inputs[index].data;
        parts[2 * index + 1].iov_len = request->inputs[index].size;
        begin_at = ends[index];
    }
    result = send_frame(client, parts, 2 * (size_t)request->input_count);
    free(out.bytes);
    return result;
}

/* Late answers to requests that were given up are passed over. */
static int receive_own(shoal_client *client, uint64_t id, shoal_answer *answer)
{
    for (;;) {
        if (shoal_receive(client, answer) != 0) {
            if (client->failure.status == 0 || client->failure.id == 0 || client->failure.id == id)
                return -1;
        } else if (answer->id == id) {
            return 0;
        } else {
            shoal_answer_free(answer);
        }
    }
}

int shoal_infer(shoal_client *client, const shoal_request *request, shoal_answer *answer)
{
    uint64_t id;
    memset(answer, 0, sizeof *answer);
    if (shoal_send(client, request, &id) != 0)
        return -1;
    return receive_own(client, id, answer);
}

int shoal_feedback(shoal_client *client, const char *model, const char *request, const char *label, int64_t row)
{
    mp_writer out = {NULL, 0, 0, 0};
    shoal_answer answer;
    uint64_t id = ++client->last_id;
    sf_begin(&out, "feedback", id, row < 0 ? 3 : 4);
    sf_put_text(&out, "model", model);
    sf_put_text(&out, "request", request);
    sf_put_text(&out, "label", label);
    if (row >= 0)
        sf_put_uint(&out, "row", (uint64_t)row);
    if (send_written(client, &out) != 0 || receive_own(client, id, &answer) != 0)
        return -1;
    shoal_answer_free(&answer);
    return 0;
}

int shoal_ping(shoal_client *client)
{
    mp_writer out = {NULL, 0, 0, 0};
    shoal_answer answer;
    uint64_t id = ++client->last_id;
    sf_begin(&out, "ping", id, 0);
    if (send_written(client, &out) != 0 || receive_own(client, id, &answer) != 0)
        return -1;
    shoal_answer_free(&answer);
    return 0;
}
