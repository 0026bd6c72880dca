//! Where a setting comes from: flag, then environment, then file, then default.
//!
//! Every flag of a role is the environment variable `SVCNET_` with its name in capitals, and a key of the configuration
//! file. That is done once for all flags: the variables' names are derived, and what the file says becomes the flags'
//! default. Roles take their flags as text; [`Problems`] turns them into domain types and collects what is wrong, so
//! that all of it is told at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use serde_json::Value;

/// Where the file is, unless `--config` says otherwise; it needs not be there.
pub(crate) const DEFAULT_FILE: &str = "/etc/svcnet/config.yaml";

/// The configuration can not be used: one line for each thing that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct ConfigError(pub(crate) Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => f.write_str(only),
            all => {
                write!(f, "{} things are wrong with the configuration:", all.len())?;
                all.iter().try_for_each(|line| write!(f, "\n  {line}"))
            }
        }
    }
}

/// The configuration file.
#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    path: PathBuf,
    values: BTreeMap<String, String>,
}

impl File {
    /// Reads the file that the arguments or the environment name, or else the usual one if it is there.
    pub(crate) fn of(args: &[OsString], command: &Command) -> Result<Self, ConfigError> {
        let named = named_on(args).or_else(|| std::env::var_os("SVCNET_CONFIG").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&path, &text, &flags_of_all_roles(command)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => Ok(Self::default()),
            Err(e) => Err(ConfigError(vec![format!("{} (--config): {e}", path.display())])),
        }
    }

    fn parse(path: &Path, text: &str, flags: &[String]) -> Result<Self, ConfigError> {
        let shown = path.display();
        let read: Option<BTreeMap<String, Value>> =
            serde_saphyr::from_str(text).map_err(|error| ConfigError(vec![format!("{shown}: {error}")]))?;
        let mut problems = Vec::new();
        let mut values = BTreeMap::new();
        for (key, value) in read.unwrap_or_default() {
            if !flags.contains(&key) {
                let hint = nearest(&key, flags).map_or_else(
                    || "`svcnet server --help` and `svcnet agent --help` list the keys".to_string(),
                    |near| format!("did you mean {near}?"),
                );
                problems.push(format!("{shown}: unknown key {key}: {hint}"));
                continue;
            }
            match text_of(&value) {
                Some(text) => _ = values.insert(key, text),
                None => problems.push(format!(
                    "{shown}: {key}: wanted one value or a list of values, without a structure of their own"
                )),
            }
        }
        if problems.is_empty() {
            Ok(Self {
                path: path.to_path_buf(),
                values,
            })
        } else {
            Err(ConfigError(problems))
        }
    }
}

/// What a flag would say; none for what no flag can.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(items) => {
            let items: Option<Vec<String>> = items
                .iter()
                .map(|item| if item.is_array() { None } else { text_of(item) })
                .collect();
            items.map(|items| items.join(","))
        }
        Value::Null | Value::Object(_) => None,
    }
}

/// `--config` is needed before the arguments can be parsed.
fn named_on(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().take_while(|arg| *arg != "--");
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

fn takes_settings(command: &Command) -> bool {
    command
        .get_arguments()
        .any(|arg| arg.get_long() == Some("config"))
}

fn flags_of_all_roles(command: &Command) -> Vec<String> {
    let roles = command.get_subcommands().filter(|role| takes_settings(role));
    let mut flags: Vec<String> = roles
        .flat_map(Command::get_arguments)
        .filter_map(|arg| arg.get_long().map(str::to_string))
        .filter(|flag| flag != "config" && flag != "help")
        .collect();
    flags.sort();
    flags.dedup();
    flags
}

/// Name of the environment variable for a flag.
fn variable(flag: &str) -> String {
    format!("SVCNET_{}", flag.to_uppercase().replace('-', "_"))
}

/// Makes environment and file speak for the flags of all roles.
pub(crate) fn prepare(command: Command, file: &File) -> Command {
    command.mut_subcommands(|role| {
        if !takes_settings(&role) {
            return role;
        }
        role.args_override_self(true).mut_args(|arg| {
            let Some(flag) = arg.get_long().map(str::to_string) else {
                return arg;
            };
            let arg = arg.env(variable(&flag)).hide_env_values(true);
            match file.values.get(&flag) {
                Some(value) => arg.default_value(value.clone()).required(false),
                None => arg,
            }
        })
    })
}

/// Which of the settings were given, and where.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    by_flag: BTreeMap<String, Source>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Flag,
    Environment,
    File(PathBuf),
}

impl Given {
    /// Out of what was parsed for one role.
    pub(crate) fn of(matches: &ArgMatches, file: &File) -> Self {
        let source = |id: &clap::Id| {
            // Ids are the fields' names; groups have ids too, but no source.
            let flag = id.as_str().replace('_', "-");
            let source = match matches.value_source(id.as_str())? {
                ValueSource::CommandLine => Source::Flag,
                ValueSource::EnvVariable => Source::Environment,
                _ if file.values.contains_key(&flag) => Source::File(file.path.clone()),
                _ => return None,
            };
            Some((flag, source))
        };
        Self {
            by_flag: matches.ids().filter_map(source).collect(),
        }
    }

    /// Whether the setting is other than the default because somebody said so.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.by_flag.contains_key(flag)
    }

    /// The setting as whoever gave it knows it.
    fn name(&self, flag: &str) -> String {
        match self.by_flag.get(flag) {
            None | Some(Source::Flag) => format!("--{flag}"),
            Some(Source::Environment) => format!("{} (--{flag})", variable(flag)),
            Some(Source::File(path)) => format!("{}: {flag} (--{flag})", path.display()),
        }
    }
}

/// What is wrong with the settings of a role, as it is found.
#[derive(Debug)]
pub(crate) struct Problems<'a> {
    given: &'a Given,
    list: Vec<String>,
}

impl<'a> Problems<'a> {
    /// None yet.
    pub(crate) fn new(given: &'a Given) -> Self {
        Self {
            given,
            list: Vec::new(),
        }
    }

    /// The setting in its type; when it has none, that is noted.
    pub(crate) fn parse<T>(&mut self, flag: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.parse_with(flag, text, |text| {
            text.parse::<T>().map_err(|error| error.to_string())
        })
    }

    /// A positional argument in its type; when it has none, that is noted.
    pub(crate) fn parse_argument<T>(&mut self, name: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        text.parse()
            .map_err(|error| self.list.push(format!("{name}: {error}")))
            .ok()
    }

    /// The setting as the function reads it; when it can not, that is noted.
    pub(crate) fn parse_with<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match read(text.trim()) {
            Ok(value) => Some(value),
            Err(why) => {
                // Most errors repeat the value; those of the standard library do not.
                let value = if why.contains(text) {
                    String::new()
                } else {
                    format!("{text:?}: ")
                };
                self.add(flag, format_args!("{value}{why}"));
                None
            }
        }
    }

    /// The parts of a comma-separated setting in their type.
    pub(crate) fn parse_list<T>(&mut self, flag: &str, text: &str) -> Vec<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.filter_map(|part| self.parse(flag, part)).collect()
    }

    /// Notes what is wrong with a setting.
    pub(crate) fn add(&mut self, flag: &str, why: impl fmt::Display) {
        self.list.push(format!("{}: {why}", self.given.name(flag)));
    }

    /// How settings are called by whoever gave them, for a problem that concerns two.
    pub(crate) fn name(&self, flag: &str) -> String {
        self.given.name(flag)
    }

    /// All that was noted, if anything was.
    pub(crate) fn check(self) -> Result<(), ConfigError> {
        if self.list.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(self.list))
        }
    }
}

/// The flag that a mistyped one is most like, if one is like it at all.
fn nearest<'a>(word: &str, flags: &'a [String]) -> Option<&'a String> {
    let near = flags.iter().map(|flag| (distance(word, flag), flag)).min()?;
    (near.0 <= 1 + word.len() / 4).then_some(near.1)
}

/// Edits from one word to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        let flag = |name: &'static str| Arg::new(name.replace('-', "_")).long(name);
        Command::new("svcnet").subcommand(Command::new("agent").args([
            flag("config"),
            flag("cluster-cidr").default_value("10.244.0.0/16"),
            flag("disable"),
        ]))
    }

    fn file(text: &str) -> Result<File, ConfigError> {
        File::parse(Path::new("/etc/x.yaml"), text, &flags_of_all_roles(&command()))
    }

    fn given(file: &File, args: &[&str]) -> (ArgMatches, Given) {
        let matches = prepare(command(), file).try_get_matches_from(args).unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        (matches.clone(), Given::of(matches, file))
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let none = File::default();
        let set = file("cluster-cidr: 10.1.0.0/16\ndisable: [dns, proxy]\n").unwrap();
        let value = |file: &File, args: &[&str]| {
            let (matches, given) = given(file, args);
            let has = given.has("cluster-cidr");
            (matches.get_one::<String>("cluster_cidr").cloned().unwrap(), has)
        };
        assert_eq!(
            value(&none, &["svcnet", "agent"]),
            ("10.244.0.0/16".to_string(), false)
        );
        assert_eq!(
            value(&set, &["svcnet", "agent"]),
            ("10.1.0.0/16".to_string(), true)
        );
        let flag = ["svcnet", "agent", "--cluster-cidr", "10.2.0.0/16"];
        assert_eq!(value(&set, &flag), ("10.2.0.0/16".to_string(), true));
        let (matches, _) = given(&set, &["svcnet", "agent"]);
        assert_eq!(matches.get_one::<String>("disable").unwrap(), "dns,proxy");
    }

    #[test]
    fn all_that_is_wrong_with_a_file_is_told_with_what_would_be_right() {
        let error = file("cluster-cird: 10.1.0.0/16\nnonsense: 1\ndisable: {a: b}\n").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("3 things are wrong"), "{text}");
        assert!(text.contains("/etc/x.yaml: unknown key cluster-cird: did you mean cluster-cidr?"));
        assert!(text.contains("/etc/x.yaml: disable: wanted one value or a list"));
        assert!(file("a: [").is_err());
        assert!(file("").is_ok() && file("# nothing\n").is_ok());
    }

    #[test]
    fn problems_name_the_setting_as_it_was_given() {
        let set = file("cluster-cidr: 10.244.0.0/99\n").unwrap();
        let (matches, given) = given(&set, &["svcnet", "agent", "--disable", "x"]);
        let mut problems = Problems::new(&given);
        let text = matches.get_one::<String>("cluster_cidr").unwrap();
        assert_eq!(
            problems.parse::<svcnet_api::types::CidrList>("cluster-cidr", text),
            None
        );
        assert_eq!(problems.parse::<u16>("disable", "x"), None);
        let text = problems.check().unwrap_err().to_string();
        assert!(
            text.contains("/etc/x.yaml: cluster-cidr (--cluster-cidr): \"10.244.0.0/99\" is not"),
            "{text}"
        );
        assert!(text.contains("--disable: \"x\": invalid digit"), "{text}");
    }

    #[test]
    fn the_file_is_found_before_the_arguments_are_parsed() {
        let args = |list: &[&str]| named_on(&list.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(args(&["svcnet", "server", "--config", "/a"]), Some("/a".into()));
        assert_eq!(args(&["svcnet", "server", "--config=/a"]), Some("/a".into()));
        assert_eq!(
            args(&["svcnet", "pod", "run", "x", "--", "y", "--config", "/a"]),
            None
        );
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("cluster-cird", "cluster-cidr"), 2);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
