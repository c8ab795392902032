//! The holes that the kernel's validator is known to have, and this one has not: each with what it
//! would miss, and a canary beside it that is no deadlock.

use lockdep::testing::World;
use lockdep::{Attributes, Kind};

const CIRCLE: &[Kind] = &[Kind::Circular];
const AGAIN: &[Kind] = &[Kind::Recursive];
const FINE: &[Kind] = &[];

#[track_caller]
fn check(program: &str, expected: &[Kind]) {
    let world = World::new();
    world.run(program);
    assert_eq!(world.kinds(), expected, "{program}");
}

#[test]
fn h1_a_recursive_reader_hides_no_lock_outside_of_it() {
    check("A R(B) C ; C A ;", CIRCLE);
    check("C A ; A R(B) C ;", CIRCLE);
    check("A R(B) R(C) D ; D A ;", CIRCLE);
    check("R(B) A ; A R(B) C ; C B ;", CIRCLE);
    check("A R(B) C ; A C ;", FINE);
}

#[test]
fn h2_no_order_of_finding_hides_a_strong_path() {
    // Two ways from S to M: by way of a recursive reader of P, and by way of Q.
    let edges = ["S R(P) ;", "S Q ;", "R(P) M ;", "Q M ;", "M T ;"];
    for first in 0..edges.len() {
        let mut program: Vec<&str> = edges.to_vec();
        program.rotate_left(first);
        check(&(program.join(" ") + " T S ;"), CIRCLE);
        program.reverse();
        check(&(program.join(" ") + " T S ;"), CIRCLE);
    }
    check("S R(P) ; R(P) M ; M T ; T S ;", FINE);
}

#[test]
fn h3_an_order_of_instances_is_compared_though_the_chain_is_known() {
    // Which of the two boxes has the lower address is not known: one order is right.
    let mut nr_right = 0;
    for (right, wrong) in [("A1 A2 ;", "A2 A1 ;"), ("A2 A1 ;", "A1 A2 ;")] {
        let world = World::with(|_| Attributes::SPIN.ordered(|held, taken| held.cmp(&taken)));
        world.run("A1 ; A2 ;");
        if world.run(right).is_empty() {
            nr_right += 1;
            world.run(right);
            assert_eq!(world.kinds(), FINE, "{right}");
            world.run(wrong);
            assert_eq!(world.kinds(), AGAIN, "{wrong}");
        }
    }
    assert!(nr_right > 0);
}

#[test]
fn h4b_a_tolerated_instance_hides_no_lock_outside_of_it() {
    check("N Y1@N A Y2@N Z ; Z A ;", CIRCLE);
    check("Z A ; N Y1@N A Y2@N Z ;", CIRCLE);
    check("N Y1@N A Y2@N Z ; A Z ;", FINE);
}

/// Steps of chains are compared whole, so that there is nothing that could collide: every pair of
/// many classes is told from every other.
#[test]
fn h5_no_digest_stands_for_a_chain() {
    let last = if cfg!(miri) { 'c' } else { 'l' };
    let names: Vec<String> = ('a'..=last).map(|letter| format!("L{letter}")).collect();
    let orders = |is_reversed: bool| {
        let mut program = String::new();
        for (at, outer) in names.iter().enumerate() {
            for inner in &names[at + 1..] {
                let pair = if is_reversed {
                    [inner, outer]
                } else {
                    [outer, inner]
                };
                program += &format!("{} {} ; ", pair[0], pair[1]);
            }
        }
        program
    };
    check(&orders(false), FINE);
    check(&orders(true), FINE);
    for (at, outer) in names.iter().enumerate() {
        for inner in &names[at + 1..] {
            check(&format!("{} {inner} {outer} ;", orders(false)), CIRCLE);
        }
    }
}
