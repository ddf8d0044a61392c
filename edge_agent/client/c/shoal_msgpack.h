/* The part of msgpack that frames need; of no use to applications. */
#ifndef SHOAL_MSGPACK_H
#define SHOAL_MSGPACK_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    unsigned char *bytes; /* the caller frees them */
    size_t size, room;
    int failed; /* no memory */
} mp_writer;

void mp_put(mp_writer *out, const void *bytes, size_t size);
void mp_put_byte(mp_writer *out, unsigned byte);
/* The tag of a value and a big-endian number of so many bytes. */
void mp_put_number(mp_writer *out, unsigned tag, uint64_t number, int bytes);
void mp_put_uint(mp_writer *out, uint64_t number);
void mp_put_text(mp_writer *out, const char *text);
void mp_put_map(mp_writer *out, uint32_t count);
void mp_put_array(mp_writer *out, uint32_t count);

typedef struct {
    const unsigned char *at, *end;
    int failed; /* not msgpack, or cut off */
} mp_reader;

typedef struct {
    enum { NOTHING, NUMBER, REAL, TEXT, BINARY, ARRAY, MAP, OTHER } kind;
    uint64_t number; /* of NUMBER; how many elements of ARRAY and MAP */
    double real;
    const unsigned char *bytes; /* of TEXT and BINARY */
    size_t size;
} mp_value;

/* The next value; of an array or a map only its head. */
mp_value mp_take(mp_reader *in);
void mp_skip(mp_reader *in, int depth);
int mp_is(const mp_value *key, const char *text);
/* The text as C has it, in the very bytes that were read; "" where it is none. */
const char *mp_text(const mp_value *found);

#endif
