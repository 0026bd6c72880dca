/// Runs a target over its seeds (`fuzz/seeds/TARGET`). The tests of each module `fuzzing` include this file: their crates have no
/// other in common that could hold it.
fn over_seeds(target: &str, run: impl Fn(&[u8])) {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/");
    let mut count = 0;
    for seed in std::fs::read_dir(format!("{seeds}{target}")).unwrap() {
        run(&std::fs::read(seed.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 1, "no seeds for {target}");
}
