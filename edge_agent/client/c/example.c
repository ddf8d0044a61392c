/* Asks a model about one row of zeros, tells its best class, and gives feedback.
 *
 *     cc -std=c99 -o example example.c shoal.c shoal_frames.c shoal_msgpack.c
 *     ./example /run/shoal/frames.sock digits image 1 8 8
 */
#include "shoal.h"

#include <stdio.h>
#include <stdlib.h>

#define MOST_AXES 8
#define MOST_NUMBERS 16777216

static int report(const shoal_client *client)
{
    const shoal_failure *failure = shoal_error(client);
    fprintf(stderr, "%d %s: %s\n", failure->status, failure->kind, failure->text);
    return 1;
}

int main(int count, char **arguments)
{
    shoal_client *client;
    shoal_request request = {0};
    shoal_tensor input;
    shoal_answer answer;
    uint64_t shape[MOST_AXES] = {1};
    float *row;
    uint64_t index, numbers = 1, best = 0;
    int axis, axes, result;

    if (count < 5 || count > 3 + MOST_AXES) {
        fprintf(stderr, "usage: %s SOCKET MODEL INPUT AXIS...\n", arguments[0]);
        return 2;
    }
    axes = count - 3; /* a row's, and axis 0 before them: one row */
    for (axis = 1; axis < axes; axis++) {
        shape[axis] = strtoull(arguments[3 + axis], NULL, 10);
        if (shape[axis] == 0 || shape[axis] > MOST_NUMBERS / numbers) {
            fprintf(stderr, "%s: an axis must be at least 1, and a row have at most %d numbers\n", arguments[3 + axis],
                    MOST_NUMBERS);
            return 2;
        }
        numbers *= shape[axis];
    }
    row = calloc((size_t)numbers, sizeof *row);
    client = shoal_connect(arguments[1], 10000);
    if (!row || !client)
        return 1;

    input = shoal_tensor_of(arguments[3], SHOAL_FP32, (uint32_t)axes, shape, row, (size_t)numbers * sizeof *row);
    request.model = arguments[2];
    request.inputs = &input;
    request.input_count = 1;
    result = shoal_infer(client, &request, &answer);
    if (result != 0) {
        result = report(client);
    } else {
        const shoal_tensor *output = &answer.outputs[0];
        const float *values = output->data;
        for (index = 1; index < output->size / sizeof *values; index++)
            if (values[index] > values[best])
                best = index;
        printf("%s %s, request %s: class %llu with %.4f\n", answer.model, answer.version, answer.request,
               (unsigned long long)best, values[best]);
        if (answer.label_wanted && shoal_feedback(client, answer.model, answer.request, "0", -1) != 0)
            result = report(client);
        shoal_answer_free(&answer);
    }
    shoal_close(client);
    free(row);
    return result;
}
