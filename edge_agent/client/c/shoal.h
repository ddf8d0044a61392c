/* Asks the models of a Shoal device over its frames socket (docs/frames.md). C99 and POSIX, no other library.
 *
 * Compile shoal.c, shoal_frames.c and shoal_msgpack.c with the program.
 *
 *     shoal_client *client = shoal_connect("/run/shoal/frames.sock", 30000);
 *     shoal_tensor image = shoal_tensor_of("image", SHOAL_FP32, 4, (uint64_t[]){1, 1, 8, 8}, pixels, sizeof pixels);
 *     shoal_answer answer;
 *     if (shoal_infer(client, &(shoal_request){.model = "digits", .inputs = &image, .input_count = 1}, &answer) == 0)
 *         use((const float *)answer.outputs[0].data);
 *     else
 *         fprintf(stderr, "%s\n", shoal_error(client)->text);
 *     shoal_answer_free(&answer);
 *     shoal_close(client);
 *
 * One client belongs to one thread at a time. Every function that gives an int gives 0, or -1 with the reason in
 * shoal_error(). After a failure of the connection itself (status 0) the next request connects again.
 */
#ifndef SHOAL_H
#define SHOAL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SHOAL_MAX_AXES 32
#define SHOAL_MAX_TENSORS 32

typedef enum {
    SHOAL_BOOL, SHOAL_UINT8, SHOAL_UINT16, SHOAL_UINT32, SHOAL_UINT64,
    SHOAL_INT8, SHOAL_INT16, SHOAL_INT32, SHOAL_INT64,
    SHOAL_FP16, SHOAL_FP32, SHOAL_FP64,
    SHOAL_BYTES /* each element a little-endian u32 length and its bytes */
} shoal_datatype;

/* Values are little-endian and row-major, as memory is on every machine that this is meant for. */
typedef struct {
    const char *name;
    shoal_datatype datatype;
    uint32_t axes;
    uint64_t shape[SHOAL_MAX_AXES];
    const void *data; /* of an answer: aligned to 8 bytes */
    size_t size;      /* in bytes */
} shoal_tensor;

/* What is left 0 or NULL is not sent. */
typedef struct {
    const char *model;
    const char *version;   /* NULL asks the one that serves by default */
    const char *request;   /* name for feedback; NULL lets the agent make one */
    const char *group;     /* what the rows of one subject share */
    uint32_t priority;     /* 1 is the most urgent */
    uint64_t timeout_us;   /* after which the answer is not wanted any more */
    int probe;             /* neither counted nor sampled */
    const shoal_tensor *inputs;
    uint32_t input_count;
    const char *const *outputs; /* names of those wanted; NULL for all */
    uint32_t output_count;
} shoal_request;

/* Text and data point into memory of the answer's own, until shoal_answer_free(). */
typedef struct {
    uint64_t id;
    const char *model, *version, *package, *request;
    int label_wanted;
    uint32_t violations; /* rules that values broke and were let through */
    shoal_tensor outputs[SHOAL_MAX_TENSORS];
    uint32_t output_count;
    void *memory;
} shoal_answer;

typedef struct {
    uint64_t id;          /* of the request; 0 where the connection itself failed */
    int status;           /* as HTTP's; 0 where it did not come from the agent */
    double retry_after_s; /* 0 where the agent says nothing */
    char kind[32];        /* the error's class: SignatureMismatch, UnknownModel, ... */
    char text[512];
} shoal_failure;

typedef struct shoal_client shoal_client;

/* A client; NULL without memory. It connects with its first request. timeout_ms: how long to wait for bytes. */
shoal_client *shoal_connect(const char *path, int timeout_ms);
void shoal_close(shoal_client *client);
const shoal_failure *shoal_error(const shoal_client *client);

/* A tensor over the caller's memory. */
shoal_tensor shoal_tensor_of(const char *name, shoal_datatype datatype, uint32_t axes, const uint64_t *shape,
                             const void *data, size_t size);
/* Bytes of one element; 0 for SHOAL_BYTES. */
size_t shoal_datatype_size(shoal_datatype datatype);

/* Ask, and wait for the answer. Sent once more where the agent has restarted since the last request. */
int shoal_infer(shoal_client *client, const shoal_request *request, shoal_answer *answer);

/* Several requests at once: send them, then receive as many answers, in whatever order they come. A failed request
 * gives -1 with its id in shoal_error(); so does each answer count. Keep at most 32 unanswered. */
int shoal_send(shoal_client *client, const shoal_request *request, uint64_t *id);
int shoal_receive(shoal_client *client, shoal_answer *answer);

/* Tell the true label of an earlier request: a class by name. row: -1 for a request of one row. */
int shoal_feedback(shoal_client *client, const char *model, const char *request, const char *label, int64_t row);
int shoal_ping(shoal_client *client);
void shoal_answer_free(shoal_answer *answer);

#ifdef __cplusplus
}
#endif
#endif
