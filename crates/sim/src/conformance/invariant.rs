//! What a driver owes: the invariants, and which of them each kind of driver is held to.

use core::fmt;

macro_rules! invariants {
    ($($name:ident = $text:literal, $guarantee:literal;)*) => {
        /// Something that a driver owes: R for safety, P for progress, L for locks, E for events.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Invariant {
            $(
                #[doc = $text]
                $name,
            )*
        }

        impl Invariant {
            /// Every invariant.
            pub const ALL: [Self; 27] = [$(Self::$name,)*];

            /// Its short name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// What it asks for, in one sentence.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The guarantee of the memory manager that it carries: `G1` and so on.
            pub const fn guarantee(self) -> &'static str {
                match self {
                    $(Self::$name => $guarantee,)*
                }
            }
        }
    };
}

invariants! {
    R1 = "no translation that was fetched before a start is used after it", "G2";
    R2 = "when a start has returned, the device no longer uses the old frames", "G1";
    R3 = "that holds for a second start too, which finds the work begun by the first", "G1";
    R4 = "no frame is used that was freed", "G1";
    R5 = "every copy of an address is dropped, wherever the device keeps it", "G1";
    R6 = "after the end the device sees the new contents", "G10";
    R7 = "nothing is written after a write protection, and no write is lost", "G10";
    R8 = "pins balance", "G11";
    P1 = "only what is in use is refused", "G4";
    P2 = "a blockable start succeeds", "G3";
    P3 = "a non-blockable start and an end neither sleep nor wait", "G4";
    P4 = "starts and ends balance, whoever else refuses", "G5";
    P5 = "faults and submissions end under a finite number of invalidations", "G8";
    P6 = "who waits for the end of an invalidation is woken by it", "G8";
    P7 = "memory comes back in bounded time", "G9";
    P8 = "a range that is not the user's does not stall the user", "G4";
    P9 = "a device that hangs holds nobody up for ever", "G8";
    P10 = "after the release nothing is touched", "G16";
    L1 = "a callback takes no lock of the memory manager", "G14";
    L2 = "no lock of a callback is held over an allocation", "G14";
    L3 = "what has to run before a fence signals takes no lock that is held over a wait", "G14";
    L4 = "a subscription is not ended under a lock of a callback", "G14";
    L5 = "brackets may nest and cross", "G14";
    L6 = "registration and teardown take locks in the order of callbacks", "G14";
    E1 = "only the device's own migrations are not told to it", "G1";
    E2 = "no event is ignored without a pin", "G1";
    E3 = "a fork takes the right to write away", "G1";
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Invariant {
    /// The other invariants whose breach is one of this too, by what they say: nothing else
    /// stands for an invariant.
    pub const fn shows_as(self) -> &'static [Self] {
        match self {
            // After a start the old frames are not used. The kit frees a frame only after a start,
            // so who uses a freed one has used an old one.
            Self::R2 => &[Self::R4],
            _ => &[],
        }
    }

    /// The invariant of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// How a driver keeps its promise: what it does when a range changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// A: waits for the fences of the work that uses the range.
    Fence,
    /// B: stops all queues of the process, and resumes them later.
    Queue,
    /// C: drops translations that the device faults in again.
    Fault,
    /// D: the same through commands that the device has to answer.
    Command,
    /// E: keeps the pages pinned, unlinks them now and unpins them later.
    PinCache,
    /// F: pins until the user lets go, and is not told.
    Sticky,
    /// G: takes back what it has lent, and waits for those who use it.
    Grant,
    /// H: walks the page table, and is told inside of its change.
    Walker,
}

/// What is asked of a pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// A breach fails the driver.
    Must,
    /// A figure is given, and nothing fails.
    Graded,
    /// It does not apply.
    Nothing,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Self; 8] = [
        Self::Fence,
        Self::Queue,
        Self::Fault,
        Self::Command,
        Self::PinCache,
        Self::Sticky,
        Self::Grant,
        Self::Walker,
    ];

    /// Its letter.
    pub const fn letter(self) -> char {
        (b'A' + self as u8) as char
    }

    /// What it is held to if somebody asks for this one: a figure becomes a failure.
    pub(super) fn need_of_wanted(self, invariant: Invariant) -> Need {
        match self.need(invariant) {
            Need::Graded => Need::Must,
            need => need,
        }
    }

    /// What it is held to. What the matrix does not name, everybody is held to.
    pub fn need(self, invariant: Invariant) -> Need {
        let row = match self {
            Self::Fence | Self::Queue => "R1! R2! R3! R4! R6! R8! P1! P3! P4! P7- P8o P9! L2! L3!",
            Self::Fault => "R1! R2! R3! R4! R6! R8- P1! P3! P4! P7- P8o P9! L2! L3-",
            Self::Command => "R1! R2! R3! R4! R6! R8- P1! P3! P4! P7- P8o P9! L2! L3!",
            Self::PinCache => "R1! R2! R3! R4! R6o R8! P1! P3! P4- P7! P8- P9! L2! L3-",
            Self::Sticky => "R1- R2! R3- R4! R6- R8! P1- P3- P4- P7! P8- P9! L2! L3-",
            Self::Grant => "R1- R2! R3! R4! R6- R8! P1! P3! P4- P7! P8- P9! L2! L3-",
            Self::Walker => "R1- R2! R3! R4! R6! R8- P1- P3! P4- P7- P8- P9- L2- L3-",
        };
        let cell = row
            .split(' ')
            .find_map(|cell| cell.strip_prefix(invariant.name()));
        match cell {
            Some("o") => Need::Graded,
            Some("-") => Need::Nothing,
            _ => Need::Must,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_names_what_it_should() {
        for pattern in Pattern::ALL {
            // A prefix of a name must not answer for it: P1 is not P10.
            assert_eq!(pattern.need(Invariant::P10), Need::Must, "{pattern:?}");
            assert_eq!(pattern.need(Invariant::R4), Need::Must, "{pattern:?}");
        }
        let letters: String = Pattern::ALL.map(Pattern::letter).iter().collect();
        assert_eq!(letters, "ABCDEFGH");
        assert_eq!(Pattern::PinCache.need(Invariant::R6), Need::Graded);
        assert_eq!(Pattern::Walker.need(Invariant::P9), Need::Nothing);
    }

    #[test]
    fn names_lead_back() {
        for invariant in Invariant::ALL {
            assert_eq!(Invariant::of_name(invariant.name()), Some(invariant));
        }
    }
}
