//! One file per controller, all the same shape: plan, then execute.
