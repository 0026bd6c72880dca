//! kubectl against the tables: a server for each table.

macro_rules! tables {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                svcnet_conformance::run_table(stringify!($name));
            }
        )*

        #[test]
        fn every_table_is_run() {
            let dir = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tables"));
            let files = dir.into_iter().flatten().flatten().map(|file| file.file_name());
            let mut files: Vec<String> = files.map(|name| name.to_string_lossy().into_owned()).collect();
            files.sort();
            let mut listed = [$(concat!(stringify!($name), ".txt")),*];
            listed.sort_unstable();
            assert_eq!(files, listed);
        }
    };
}

tables! {
    access,
    look,
    networking,
    objects,
    patches,
    services,
    services_dual,
    watch,
}
