/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Verifies one signature of the initial public draft, which QuDAG nodes make: with the key itself, by the key's id once it is
 * registered, and damaged. Prints the three verdicts, or `-` for the second one when the sidecar keeps no keys.
 *
 *     cc -std=c99 -Wall -Wextra -Werror -pedantic -I ../include -o verify verify.c
 *     ./verify SOCKET KEY MESSAGE SIGNATURE
 *
 * The exit code is 0 when the signature is valid, 1 when it is not and 2 when that is not known.
 */
#include "qudag_offload.h"

static uint8_t *read_file(const char *path, size_t *length)
{
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = NULL;
    long end;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (end = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0 ||
        (bytes = malloc((size_t)end + 1)) == NULL || fread(bytes, 1, (size_t)end, file) != (size_t)end) {
        fprintf(stderr, "verify: cannot read %s\n", path);
        exit(2);
    }
    fclose(file);
    *length = (size_t)end;
    return bytes;
}

static void check(qudag_offload_result result, const qudag_offload *sidecar)
{
    if (result != QUDAG_OFFLOAD_OK) {
        fprintf(stderr, "verify: %s\n", sidecar->error);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    qudag_offload sidecar;
    qudag_offload_signature operations[2];
    qudag_offload_signature *one = &operations[0], *damaged = &operations[1];
    qudag_offload_digest digest;
    qudag_offload_result result;
    uint8_t verdicts[2], named = QUDAG_OFFLOAD_NONE;
    uint8_t id[QUDAG_OFFLOAD_KEY_ID_BYTES], hash[QUDAG_OFFLOAD_KEY_ID_BYTES];
    uint8_t *key, *message, *signature, *other;
    size_t key_length, message_length, signature_length;

    if (argc != 5) {
        fprintf(stderr, "usage: verify SOCKET KEY MESSAGE SIGNATURE\n");
        return 2;
    }
    key = read_file(argv[2], &key_length);
    message = read_file(argv[3], &message_length);
    signature = read_file(argv[4], &signature_length);
    other = malloc(signature_length + 1);
    if (key_length != QUDAG_OFFLOAD_KEY_BYTES || other == NULL) {
        fprintf(stderr, "verify: a key has %d bytes\n", QUDAG_OFFLOAD_KEY_BYTES);
        return 2;
    }
    memcpy(other, signature, signature_length);
    if (signature_length > 0)
        other[0] ^= 1;

    check(qudag_offload_connect(&sidecar, argv[1], 2000), &sidecar);
    memset(operations, 0, sizeof operations);
    one->edition = QUDAG_OFFLOAD_DRAFT;
    one->key = key;
    one->message = message;
    one->message_length = message_length;
    one->signature = signature;
    one->signature_length = signature_length;
    *damaged = *one;
    damaged->signature = other;
    check(qudag_offload_verify(&sidecar, operations, 2, verdicts), &sidecar);

    result = qudag_offload_register(&sidecar, key, 1, id);
    if (result == QUDAG_OFFLOAD_OK) {
        one->key = NULL;
        one->key_id = id;
        check(qudag_offload_verify(&sidecar, one, 1, &named), &sidecar);
        /* The id of a key is its hash. */
        digest.data = key;
        digest.data_length = key_length;
        digest.hash = hash;
        digest.length = sizeof hash;
        check(qudag_offload_hash(&sidecar, &digest, 1), &sidecar);
        if (memcmp(id, hash, sizeof id) != 0) {
            fprintf(stderr, "verify: the id is that of another key\n");
            return 2;
        }
    } else if (result != QUDAG_OFFLOAD_REFUSED) {
        check(result, &sidecar);
    }
    qudag_offload_close(&sidecar);

    printf("%s %s %s\n", qudag_offload_verdict_name(verdicts[0]),
           result == QUDAG_OFFLOAD_OK ? qudag_offload_verdict_name(named) : "-",
           qudag_offload_verdict_name(verdicts[1]));
    free(key);
    free(message);
    free(signature);
    free(other);
    return verdicts[0] == QUDAG_OFFLOAD_VALID ? 0 : 1;
}
