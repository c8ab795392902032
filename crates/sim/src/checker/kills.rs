//! G7, G8, G9: nobody is killed without need, each reaping ends, and one comes after the other.

use super::Breach;
use std::collections::BTreeMap;

/// The kills of one memory cgroup.
#[derive(Debug, Default)]
pub struct Kills {
    /// Victims by their number, and whether the reaper is done with them.
    victims: BTreeMap<u64, bool>,
    /// Those that may die together with the last victim.
    group: Vec<u64>,
}

impl Kills {
    /// Nobody was killed.
    pub fn new() -> Self {
        Self::default()
    }

    /// `victim` was chosen, with a group that dies together, while `nr_freeable` pages could have
    /// been freed without that.
    ///
    /// # Errors
    ///
    /// [`Breach`] if it need not have been, or if an earlier victim was still being reaped.
    pub fn killed(&mut self, victim: u64, group: &[u64], nr_freeable: u64) -> Result<(), Breach> {
        let is_together = self.group.contains(&victim);
        let unfinished = self.victims.iter().find(|(_, is_done)| !**is_done);
        let earlier = unfinished.map(|(&earlier, _)| earlier);
        self.victims.insert(victim, false);
        if let (Some(earlier), false) = (earlier, is_together) {
            let what = format!("{victim} was killed while {earlier} was still being reaped");
            return Err(Breach::against("G9", what));
        }
        self.group = group.to_vec();
        if nr_freeable > 0 {
            let what = format!("{victim} was killed while {nr_freeable} pages could be freed");
            return Err(Breach::against("G7", what));
        }
        Ok(())
    }

    /// Somebody asked for the end of `victim`: that needs no shortage, and waits for nobody.
    pub fn asked(&mut self, victim: u64) {
        self.victims.insert(victim, false);
    }

    /// The reaper is done with `victim`: all is freed, or skipped with the holder's name.
    pub fn reaped(&mut self, victim: u64) {
        self.victims.insert(victim, true);
    }

    /// The run is over.
    ///
    /// # Errors
    ///
    /// [`Breach`] if the reaper has not come to an end.
    pub fn finish(&self) -> Result<(), Breach> {
        match self.victims.iter().find(|(_, is_done)| !**is_done) {
            None => Ok(()),
            Some((victim, _)) => {
                let what = format!("the reaper never came to an end with {victim}");
                Err(Breach::against("G8", what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(found: Result<(), Breach>, expected: &str) {
        assert_eq!(found.expect_err("a breach").guarantee, expected);
    }

    #[test]
    fn kills_come_one_by_one_and_with_need() {
        let mut kills = Kills::new();
        kills.killed(1, &[1, 2], 0).expect("needed");
        kills.killed(2, &[1, 2], 0).expect("of the same group");
        kills.reaped(1);
        check(kills.finish(), "G8");
        check(kills.killed(3, &[], 0), "G9");
        kills.reaped(2);
        kills.reaped(3);
        kills.finish().expect("all are reaped");
        kills.killed(5, &[], 0).expect("needed");
        kills.asked(6);
        check(kills.killed(7, &[], 0), "G9");
        for victim in 5..8 {
            kills.reaped(victim);
        }
        check(kills.killed(4, &[], 7), "G7");
    }
}
