/* A program that defines no context of its own: a plain task with all levels on. */
#include <lockdep.h>
#include <stdio.h>

static struct lockdep_map a = { .name = "a", .wait_type_inner = LD_WAIT_SLEEP };
static struct lockdep_map b = { .name = "b", .wait_type_inner = LD_WAIT_SLEEP };

static void pair(struct lockdep_map *outer, struct lockdep_map *inner)
{
	lock_acquire(outer, 0, 0, 0, 1, NULL, 1);
	lock_acquire(inner, 0, 0, 0, 1, NULL, 2);
	lock_release(inner, 3);
	lock_release(outer, 4);
}

int main(void)
{
	debug_locks_silent = 1;
	if (lockdep_ctx_irqs_disabled() || lockdep_ctx_in_hardirq() || lockdep_ctx_in_softirq() ||
	    lockdep_ctx_hardirq_threaded() || !lockdep_ctx_softirqs_enabled())
		return puts("wrong: no plain task"), 1;
	pair(&a, &b);
	if (!debug_locks)
		return puts("wrong: reported too early"), 1;
	pair(&b, &a);
	if (debug_locks)
		return puts("wrong: not reported"), 1;
	return puts("1 of 1 as expected"), 0;
}
