//! Protection: what `min` and `low` keep when somebody above reclaims.
//!
//! A memory cgroup is protected from the reclaim of those above it, never from its own. What a
//! parent is granted, its children share: if they ask for more than it has, each gets its part.
//!
//! Linux counterpart: `mem_cgroup_calculate_protection`.

use super::Memcg;

/// How much is left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protection {
    /// What `low` or `min` protects.
    LowAndMin,
    /// What `min` protects: nothing else was found.
    Min,
}

/// What one of the two bounds says.
type Setting = fn(&Memcg) -> u64;

impl Memcg {
    /// Whether reclaim on behalf of `target`, which is this memory cgroup or above it, has to leave
    /// what is here alone.
    pub(crate) fn is_protected_from(&self, target: &Self, protection: Protection) -> bool {
        if self.is(target) {
            return false;
        }
        let usage = self.frames.counter().usage();
        let is_below = |setting: Setting| {
            let kept = self.effective(target, setting);
            usage <= kept && kept > 0
        };
        is_below(Self::min_frames)
            || (protection == Protection::LowAndMin && is_below(Self::low_frames))
    }

    /// What is granted here when `target` reclaims, in frames.
    fn effective(&self, target: &Self, setting: Setting) -> u64 {
        let wanted = |level: &Self| setting(level).min(level.frames.counter().usage());
        let Some(parent) = self.parent.as_deref().filter(|_| setting(self) > 0) else {
            return 0;
        };
        if parent.is(target) {
            return wanted(self);
        }
        let granted = parent.effective(target, setting);
        let asked: u64 = parent
            .children
            .read()
            .iter()
            .map(|child| wanted(child))
            .sum();
        share_of(wanted(self), asked, granted)
    }
}

/// The part of `granted` for one who wants `own`, if all together ask for `asked`.
fn share_of(own: u64, asked: u64, granted: u64) -> u64 {
    if asked <= granted {
        return own;
    }
    (u128::from(own) * u128::from(granted) / u128::from(asked)) as u64
}

#[cfg(test)]
mod tests {
    use super::share_of;

    #[test]
    fn children_share_what_their_parent_is_granted() {
        assert_eq!(share_of(10, 10, 20), 10);
        assert_eq!(share_of(10, 20, 20), 10);
        assert_eq!(share_of(10, 40, 20), 5);
        assert_eq!(share_of(0, 40, 20), 0);
        assert_eq!(share_of(1 << 40, 1 << 41, 1 << 40), 1 << 39);
    }
}
