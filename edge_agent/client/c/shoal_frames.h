/* Requests and answers of the frames protocol as bytes; of no use to applications. */
#ifndef SHOAL_FRAMES_H
#define SHOAL_FRAMES_H

#include "shoal.h"
#include "shoal_msgpack.h"

enum { LENGTH_BYTES = 4 };

/* Room for the length, then the members that every request begins with. */
void sf_begin(mp_writer *out, const char *op, uint64_t id, uint32_t further_members);
void sf_set_length(mp_writer *out, size_t size);
void sf_put_text(mp_writer *out, const char *key, const char *text);
void sf_put_uint(mp_writer *out, const char *key, uint64_t number);
/* What a request for an inference says before its inputs, in so many members (the inputs among them). */
void sf_put_options(mp_writer *out, const shoal_request *request);
uint32_t sf_option_count(const shoal_request *request);
/* All of a tensor but its values, of which so many bytes stand in the frame before it. */
void sf_put_tensor_head(mp_writer *out, const shoal_tensor *tensor, size_t before);

/* The answer or the failure in a frame; 1 where it is a failure. */
int sf_read_answer(mp_reader *in, shoal_answer *answer, shoal_failure *failure);

#endif
