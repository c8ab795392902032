/*
 * Drives the library as a C program would: each row is a lock program of its own, with classes of
 * its own, and says whether it is reported. Prints a line for each row that went otherwise.
 */
#include <lockdep.h>
#include <stdio.h>
#include <string.h>

static int irqs_disabled, in_hardirq, in_softirq, softirqs_disabled, threaded;

int lockdep_ctx_irqs_disabled(void) { return irqs_disabled; }
int lockdep_ctx_in_hardirq(void) { return in_hardirq; }
int lockdep_ctx_in_softirq(void) { return in_softirq; }
int lockdep_ctx_hardirq_threaded(void) { return threaded; }
int lockdep_ctx_softirqs_enabled(void) { return !softirqs_disabled; }

static struct lock_class_key keys[4];
static struct lockdep_map a, b, c, a2;
static int nr_failed, nr_rows;

static void on(void) { lockdep_hardirqs_on_prepare(); irqs_disabled = 0; lockdep_hardirqs_on(1); }
static void off(void) { irqs_disabled = 1; lockdep_hardirqs_off(1); }
static void bh_on(void) { softirqs_disabled = 0; lockdep_softirqs_on(1); }
static void bh_off(void) { softirqs_disabled = 1; lockdep_softirqs_off(1); }

enum { W, R_FAIR, R_REC };

static void take(struct lockdep_map *map, int read) { lock_acquire(map, 0, 0, read, 1, NULL, 17); }
static void try(struct lockdep_map *map) { lock_acquire(map, 0, 1, W, 1, NULL, 17); }
static void drop(struct lockdep_map *map) { lock_release(map, 18); }

static void pair(struct lockdep_map *outer, int outer_read, struct lockdep_map *inner, int inner_read)
{
	take(outer, outer_read);
	take(inner, inner_read);
	drop(inner);
	drop(outer);
}

static void in_order(void) { pair(&a, W, &b, W); pair(&a, W, &b, W); }
static void abba(void) { pair(&a, W, &b, W); pair(&b, W, &a, W); }
static void abbcca(void) { pair(&a, W, &b, W); pair(&b, W, &c, W); pair(&c, W, &a, W); }
static void aa(void) { pair(&a, W, &a2, W); }
static void twice_fair(void) { pair(&a, R_FAIR, &a2, R_FAIR); }
static void twice_recursive(void) { pair(&a, R_REC, &a2, R_REC); }
static void readers_recursive(void) { pair(&a, R_REC, &b, R_REC); pair(&b, R_REC, &a, R_REC); }
static void readers_fair(void) { pair(&a, R_FAIR, &b, R_FAIR); pair(&b, R_FAIR, &a, R_FAIR); }
static void weak(void) { pair(&a, R_REC, &b, W); pair(&b, W, &a, R_REC); }
static void strong(void) { pair(&a, R_REC, &b, W); pair(&b, R_REC, &a, W); }

static void tried(void)
{
	take(&a, W), try(&b), drop(&b), drop(&a);
	take(&b, W), try(&a), drop(&a), drop(&b);
}

static void unchecked(void)
{
	take(&a, W);
	lock_acquire(&b, 0, 0, W, 0, NULL, 17);
	drop(&b), drop(&a);
	pair(&b, W, &a, W);
}

static void subclass(void)
{
	take(&a, W);
	lock_acquire(&a2, 1, 0, W, 1, NULL, 17);
	drop(&a2), drop(&a);
}

static void subclass_of_map(void)
{
	lockdep_init_map_type(&a2, "a", &keys[0], 1, LD_WAIT_SPIN, 0, LD_LOCK_NORMAL);
	aa();
}

static void subclass_eight(void)
{
	lock_acquire(&a, 8, 0, W, 1, NULL, 17);
}

static void nest(void)
{
	take(&b, W);
	lock_acquire(&a, 0, 0, W, 1, &b, 17);
	lock_acquire(&a2, 0, 0, W, 1, &b, 17);
	drop(&a2), drop(&a), drop(&b);
}

static void nest_not_held(void)
{
	lock_acquire(&a, 0, 0, W, 1, &b, 17);
	drop(&a);
}

static void unlock_twice(void) { take(&a, W), drop(&a), drop(&a); }

static void handler_safe(void)
{
	off(), take(&a, W), drop(&a), on();
	off(), in_hardirq = 1, take(&a, W), drop(&a), in_hardirq = 0, on();
}

static void handler_unsafe(void)
{
	take(&a, W), drop(&a);
	off(), in_hardirq = 1, take(&a, W), drop(&a), in_hardirq = 0, on();
}

static void enabled_while_held(void)
{
	off(), in_hardirq = 1, take(&a, W), drop(&a), in_hardirq = 0, on();
	off(), take(&a, W), on(), drop(&a);
}

static void soft_unsafe(void)
{
	take(&a, W), drop(&a);
	bh_off(), in_softirq = 1, take(&a, W), drop(&a), in_softirq = 0, bh_on();
}

static void soft_enabled_while_held(void)
{
	bh_off(), in_softirq = 1, take(&a, W), drop(&a), in_softirq = 0, bh_on();
	bh_off(), take(&a, W), bh_on(), drop(&a);
}

static void order_into_unsafe(void)
{
	off(), in_hardirq = 1, take(&a, W), drop(&a), in_hardirq = 0, on();
	take(&b, W), drop(&b);
	off(), pair(&a, W, &b, W), on();
}

static void sleeps_in_handler(void)
{
	lockdep_init_map_type(&c, "c", &keys[2], 0, LD_WAIT_SLEEP, 0, LD_LOCK_NORMAL);
	off(), in_hardirq = 1, take(&c, W), drop(&c), in_hardirq = 0, on();
}

static void sleeps_under_spin(void)
{
	lockdep_init_map_type(&c, "c", &keys[2], 0, LD_WAIT_SLEEP, 0, LD_LOCK_NORMAL);
	pair(&a, W, &c, W);
}

static void config_in_thread(void)
{
	lockdep_init_map_type(&c, "c", &keys[2], 0, LD_WAIT_CONFIG, 0, LD_LOCK_NORMAL);
	off(), in_hardirq = threaded = 1, take(&c, W), drop(&c), in_hardirq = threaded = 0, on();
}

static void forgotten_range(void)
{
	pair(&a, W, &b, W);
	lockdep_free_key_range(&keys[1], sizeof(keys[1]));
	pair(&b, W, &a, W);
}

static void forgotten_other_range(void)
{
	pair(&a, W, &b, W);
	lockdep_free_key_range(&keys[2], sizeof(keys[2]));
	pair(&b, W, &a, W);
}

static void forgotten_lock(void)
{
	pair(&a, W, &b, W);
	lockdep_reset_lock(&a);
	pair(&b, W, &a, W);
}

static void kept_over_reset(void)
{
	pair(&a, W, &b, W);
	lockdep_reset();
	pair(&b, W, &a, W);
}

static void freed_while_held(void)
{
	take(&a, W);
	debug_check_no_locks_freed(&a, sizeof(a));
	drop(&a);
}

static void freed(void)
{
	take(&a, W);
	debug_check_no_locks_freed(&b, sizeof(b));
	drop(&a);
}

static void switched_off(void)
{
	int was_on = debug_locks_off();

	abba();
	debug_locks = was_on;
}

static void keys_of_their_own(void)
{
	memset(&a, 0, sizeof(a));
	memset(&a2, 0, sizeof(a2));
	a.name = a2.name = "own";
	aa();
}

static const struct row {
	const char *name;
	void (*run)(void);
	int is_reported;
} rows[] = {
#define ROW(name, is_reported) { #name, name, is_reported }
	ROW(in_order, 0), ROW(abba, 1), ROW(abbcca, 1), ROW(aa, 1),
	ROW(twice_fair, 1), ROW(twice_recursive, 0),
	ROW(readers_recursive, 0), ROW(readers_fair, 1), ROW(weak, 0), ROW(strong, 1),
	ROW(tried, 0), ROW(unchecked, 0),
	ROW(subclass, 0), ROW(subclass_of_map, 0), ROW(subclass_eight, 1),
	ROW(nest, 0), ROW(nest_not_held, 1), ROW(unlock_twice, 1),
	ROW(handler_safe, 0), ROW(handler_unsafe, 1), ROW(enabled_while_held, 1),
	ROW(soft_unsafe, 1), ROW(soft_enabled_while_held, 1), ROW(order_into_unsafe, 1),
	ROW(sleeps_in_handler, 1), ROW(sleeps_under_spin, 1), ROW(config_in_thread, 0),
	ROW(forgotten_range, 0), ROW(forgotten_other_range, 1), ROW(forgotten_lock, 0),
	ROW(kept_over_reset, 1), ROW(freed_while_held, 1), ROW(freed, 0),
	ROW(switched_off, 0), ROW(keys_of_their_own, 0),
};

static void expect(const char *what, int is_right)
{
	nr_rows++;
	if (!is_right) {
		nr_failed++;
		printf("wrong: %s\n", what);
	}
}

static void check_held(void)
{
	take(&a, R_FAIR);
	expect("held in any way", lock_is_held_type(&a, -1) == 1);
	expect("held as a reader", lock_is_held_type(&a, 1) == 1);
	expect("not held alone", lock_is_held_type(&a, 0) == 0);
	expect("another is not held", lock_is_held_type(&b, -1) == 0);
	debug_locks_off();
	expect("unknown when off", lock_is_held_type(&a, -1) == -1);
	debug_locks = 1;
	drop(&a);
}

static void init(struct lockdep_map *map, const char *name, int key)
{
	lockdep_init_map_type(map, name, &keys[key], 0, LD_WAIT_SPIN, 0, LD_LOCK_NORMAL);
}

static void begin(void)
{
	irqs_disabled = in_hardirq = in_softirq = softirqs_disabled = threaded = 0;
	lockdep_free_key_range(keys, sizeof(keys));
	lockdep_reset_lock(&a);
	lockdep_reset_lock(&a2);
	init(&a, "a", 0), init(&a2, "a", 0), init(&b, "b", 1), init(&c, "c", 2);
	lockdep_reset();
}

int main(void)
{
	debug_locks_silent = 1;
	for (unsigned int at = 0; at < sizeof(rows) / sizeof(rows[0]); at++) {
		begin();
		rows[at].run();
		expect(rows[at].name, debug_locks == !rows[at].is_reported);
	}
	begin();
	check_held();
	/* The one report that is printed: the caller looks for it. */
	begin();
	debug_locks_silent = 0;
	abba();
	abbcca();
	printf("%d of %d as expected\n", nr_rows - nr_failed, nr_rows);
	return nr_failed != 0;
}
