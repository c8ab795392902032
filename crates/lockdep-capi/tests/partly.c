/* A program that knows of one level, and leaves the rest of its context to the library. */
#include <lockdep.h>
#include <stdio.h>

static struct lockdep_map a = { .name = "a", .wait_type_inner = LD_WAIT_SPIN };
static int in_softirq;

int lockdep_ctx_in_softirq(void) { return in_softirq; }

static void take(void)
{
	lock_acquire(&a, 0, 0, 0, 1, NULL, 1);
	lock_release(&a, 2);
}

int main(void)
{
	debug_locks_silent = 1;
	take();
	if (!debug_locks)
		return puts("wrong: reported too early"), 1;
	in_softirq = 1;
	take();
	if (debug_locks)
		return puts("wrong: not reported"), 1;
	return puts("1 of 1 as expected"), 0;
}
