// A plugin of qemu-user that counts the instructions of a program and tells the number on stderr when it ends.
//   cc -shared -fPIC count_instructions.c -o count.so && qemu-aarch64 -plugin ./count.so PROGRAM
// Declarations are of qemu's plugin API, version 1 (docs/devel/tcg-plugins): Debian has no package with its header.
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

#define EXPORTED __attribute__((visibility("default")))

struct qemu_plugin_tb;  // a block of translated instructions
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*)(uint64_t id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*)(uint64_t id, void *), void *);

EXPORTED int qemu_plugin_version = 1;

static uint64_t n_instructions;

static void translated(uint64_t id, struct qemu_plugin_tb *block) {
    (void)id;
    const size_t n = qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &n_instructions, n);
}

static void ended(uint64_t id, void *unused) {
    (void)id;
    (void)unused;
    fprintf(stderr, "%" PRIu64 "\n", n_instructions);
}

EXPORTED int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    (void)info;
    (void)argc;
    (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
