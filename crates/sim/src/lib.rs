//! pinless-sim.
