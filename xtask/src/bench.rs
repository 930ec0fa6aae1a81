// The lead writes the bench on main (branch main, xtask/src/bench.rs): leave it out of this branch, spend the time on the tests.
