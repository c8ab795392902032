/*
 * lockdep: a lock validator for C programs, by the names that kernel programmers know.
 *
 * Link with liblockdep.a or liblockdep.so. Tell it of each lock that is taken and released; it
 * reports orders of locks that can deadlock, though nothing has locked up yet.
 *
 * A "map" is the validator's view of one lock. It contains no lock, and nothing that must be
 * destroyed. A map in zeroed memory with a name is valid, and of a class of its own.
 */
#ifndef LOCKDEP_H
#define LOCKDEP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A key names a class. Only its address counts: the class is that address and a subclass, 0 to 7. */
struct lock_class_key {
	char slot[16];
};

/* What may be done while a lock is held, and where it may be taken: later ones sleep longer. */
enum lockdep_wait_type {
	LD_WAIT_INV,	/* not checked */
	LD_WAIT_FREE,	/* waits for nothing */
	LD_WAIT_SPIN,	/* spins */
	LD_WAIT_CONFIG,	/* spins, or sleeps where the system is configured so */
	LD_WAIT_SLEEP,	/* sleeps */
	LD_WAIT_MAX
};

enum lockdep_lock_type {
	LD_LOCK_NORMAL,
	LD_LOCK_PERCPU,		/* one for each thread or core */
	LD_LOCK_WAIT_OVERRIDE,	/* replaces the wait limit of its holder */
	LD_LOCK_MAX
};

struct lockdep_map {
	struct lock_class_key *key;	/* NULL: the map's own address is the key */
	void *cache[2];			/* private to the library; zero in a map made by hand */
	const char *name;		/* copied when the class is first used */
	uint8_t wait_type_outer;	/* where it may be taken; 0: as wait_type_inner */
	uint8_t wait_type_inner;	/* what holding it allows */
	uint8_t lock_type;
};

/* 1: on. A report clears it, and everything after that is silent. */
extern int debug_locks;
/* 1: judge, but print nothing. */
extern int debug_locks_silent;

/* Switches off; gives the old value of debug_locks. */
int debug_locks_off(void);

/* Makes a map. With a subclass above 0, acquisitions of subclass 0 are of that one. */
void lockdep_init_map_type(struct lockdep_map *map, const char *name, struct lock_class_key *key,
			   int subclass, uint8_t inner, uint8_t outer, uint8_t lock_type);

/*
 * A lock is taken: to be called before it blocks, or after a try has succeeded.
 *
 * trylock: 1 if it could not block. read: 0 exclusive, 1 shared, 2 shared and recursive. check: 0
 * for balance only. nest: a held map under which locks of one class may nest, or NULL. ip: where.
 */
void lock_acquire(struct lockdep_map *map, unsigned int subclass, int trylock, int read, int check,
		  struct lockdep_map *nest, unsigned long ip);

/* A lock is released, or taking it has failed after it was told. In any order. */
void lock_release(struct lockdep_map *map, unsigned long ip);

/* Whether this thread holds it. read: -1 any way, 0 alone, 1 as a reader. -1: unknown, it is off. */
int lock_is_held_type(const struct lockdep_map *map, int read);

/* Forgets what this thread holds, validated chains and reports; switches on. Orders stay. */
void lockdep_reset(void);

/* Forgets the class of this map, in all its subclasses. */
void lockdep_reset_lock(struct lockdep_map *map);

/* Memory with keys is given back: forgets every class whose key lies in it. */
void lockdep_free_key_range(void *start, unsigned long size);

/* Memory with locks is given back: this thread may hold none of them. */
void debug_check_no_locks_freed(const void *from, unsigned long len);

/*
 * Interrupt-like levels. The caller tells of changes: "prepare" before the hard level is switched
 * on, the others after a change.
 */
void lockdep_hardirqs_on_prepare(void);
void lockdep_hardirqs_on(unsigned long ip);
void lockdep_hardirqs_off(unsigned long ip);
void lockdep_softirqs_on(unsigned long ip);
void lockdep_softirqs_off(unsigned long ip);

/*
 * The library asks for the present state of the calling thread through these. It defines them
 * weakly, as a plain task with all levels on; a program defines those that it knows better.
 */
int lockdep_ctx_irqs_disabled(void);
int lockdep_ctx_in_hardirq(void);
int lockdep_ctx_in_softirq(void);
int lockdep_ctx_hardirq_threaded(void);
int lockdep_ctx_softirqs_enabled(void);

#ifdef __cplusplus
}
#endif

#endif /* LOCKDEP_H */
