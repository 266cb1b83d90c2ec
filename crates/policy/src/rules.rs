//! The compiled list: every rule of every file in one immutable index, made once for each reload and shared by all
//! guests. The time to find the rules of a host depends on the length of the name, not on the number of rules.
//! `evaluation` decides what the rules found mean.

use super::globs::{self, Globs};
use super::names::{Labels, Names};
use super::nets::{DeniedNets, NetTable};
use super::parents::Parents;
use super::ports::OpenPorts;
use super::regexes::{Regexes, RegexesBuilder};
use super::rule::{AddressSet, Effect, Scope, Subject, Terms};
use super::store::{RulePosition, RuleRecord, Said, Shape, Store};
use super::usage::{Hash, Mark, Usage};
use foldhash::fast::RandomState;
use ipnet::IpNet;
use jiff::civil::Date;
use outgate_proto::target::Host;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A file of the list, numbered in the order in which [`Builder::file`] first received them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub(super) u16);

/// Why a rule or a list cannot be compiled; the text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Not a name: empty where one is required, or longer than a name can be.
    #[error("`{name}` is no host name")]
    Name {
        /// The text in the place of the name, cut at the length of the longest name.
        name: String,
    },
    /// A malformed glob.
    #[error("the pattern `{pattern}` is not valid: {problem}")]
    Glob {
        /// As given.
        pattern: String,
        /// What is wrong.
        problem: String,
    },
    /// A malformed regex.
    #[error("the regex is not valid: {problem}")]
    Regex {
        /// What is wrong, in the parser's words.
        problem: String,
    },
    /// One regex exceeds the limit on its compiled size.
    #[error("the regex is too large: compiled it may take {limit} KiB; write shorter repetitions")]
    RegexTooLarge {
        /// The limit in KiB.
        limit: usize,
    },
    /// All regexes together are too many or too large.
    #[error(
        "the list has too many regexes: at most {count}, compiled to at most {limit} MiB; names and globs have no such limit"
    )]
    TooManyRegexes {
        /// The limit on their number.
        count: usize,
        /// The limit in MiB.
        limit: usize,
    },
    /// More than 4 GiB of names, 4 billion rules or 65,535 files.
    #[error("the list is too large")]
    TooLarge,
}

/// Kinds of rules, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RuleKind {
    /// One literal name.
    Exact,
    /// `*.base`, `**.base`, `.base`.
    Suffix,
    /// Globs inside labels.
    Glob,
    /// Regexes of both sorts.
    Regex,
    /// Addresses.
    Address,
    /// `deny` rules of any form; they are counted only here.
    Deny,
}

impl RuleKind {
    /// All kinds, in the order of their discriminants.
    pub const ALL: [RuleKind; 6] =
        [RuleKind::Exact, RuleKind::Suffix, RuleKind::Glob, RuleKind::Regex, RuleKind::Address, RuleKind::Deny];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            RuleKind::Exact => "exact",
            RuleKind::Suffix => "suffix",
            RuleKind::Glob => "glob",
            RuleKind::Regex => "regex",
            RuleKind::Address => "address",
            RuleKind::Deny => "deny",
        }
    }

    fn of(subject: &Subject<'_>, effect: Effect) -> RuleKind {
        match (effect, subject) {
            (Effect::Deny, _) => RuleKind::Deny,
            (_, Subject::Name { scope: Scope::Exact, .. }) => RuleKind::Exact,
            (_, Subject::Name { .. }) => RuleKind::Suffix,
            (_, Subject::Glob { .. }) => RuleKind::Glob,
            (_, Subject::Regex(_) | Subject::SearchRegex(_)) => RuleKind::Regex,
            (_, Subject::Net(_)) => RuleKind::Address,
        }
    }
}

/// The compiled list. Immutable, except for the notes of use and expiry; shared by `Arc`.
#[derive(Debug, Default)]
pub struct Rules {
    files: Vec<Arc<str>>,
    terms: Vec<Compiled>,
    store: Store,
    names: Names,
    globs: Globs,
    regexes: Regexes,
    nets: NetTable,
    /// The networks of address rules as written; the rules hold the index.
    networks: Vec<IpNet>,
    parents: Parents,
    denied: Arc<AddressSet>,
    none_denied: Arc<AddressSet>,
    counts: [u64; RuleKind::ALL.len()],
    next_expiry: Option<Date>,
    open_ports: OpenPorts,
    usage: Usage,
}

/// Interned terms, and whether they have expired.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) terms: Terms,
    expired: AtomicBool,
}

impl Compiled {
    pub(super) fn new(terms: Terms, expired: bool) -> Compiled {
        Compiled { terms, expired: AtomicBool::new(expired) }
    }

    /// Has the last day passed?
    pub(super) fn expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }
}

impl Shape {
    fn of(scope: Scope) -> Shape {
        match scope {
            Scope::Exact => Shape::Exact,
            Scope::OneLabel => Shape::OneLabel,
            Scope::Below => Shape::Below,
            Scope::SelfAndBelow => Shape::SelfAndBelow,
        }
    }

    /// Does a name rule match a name with `front` labels before its base?
    fn takes(self, front: usize) -> bool {
        match self {
            Shape::Exact => front == 0,
            Shape::OneLabel => front == 1,
            Shape::Below => front >= 1,
            Shape::SelfAndBelow => true,
            Shape::Glob | Shape::Regex | Shape::Net => false,
        }
    }
}

impl Rules {
    /// How many rules there are of each kind, duplicates included.
    pub fn counts(&self) -> [(RuleKind, u64); RuleKind::ALL.len()] {
        RuleKind::ALL.map(|kind| (kind, self.counts.get(kind as usize).copied().unwrap_or(0)))
    }

    /// The earliest `until` that has not passed: the day after it, the list must be built again.
    pub fn next_expiry(&self) -> Option<Date> {
        self.next_expiry
    }

    /// Makes rules whose last day was before `today` count as removed. `deny` rules of addresses still apply to the
    /// addresses of names until the list is built again.
    pub fn expire(&self, today: Date) {
        let over = |compiled: &&Compiled| compiled.terms.until.is_some_and(|until| until < today);
        self.terms.iter().filter(over).for_each(|compiled| compiled.expired.store(true, Ordering::Relaxed));
    }

    /// The names of the files, in the order of their [`FileId`]s.
    pub fn files(&self) -> &[Arc<str>] {
        &self.files
    }

    /// How many lines have a rule that was used. A rule is used when it allows a flow that passes, alone or with
    /// others, or denies one that is refused.
    pub fn used(&self) -> u64 {
        self.usage.count()
    }

    /// The lines with a rule that was used: file and line, in the order of the files. Of identical rules in one
    /// file, the first stands for all.
    pub fn used_lines(&self) -> impl Iterator<Item = (&Arc<str>, u32)> {
        self.usage.lines().filter_map(|(file, line)| Some((self.files.get(file)?, line)))
    }

    /// The rules on those lines, in no order. Takes time in the number of all rules.
    pub fn used_marks(&self) -> HashSet<Mark> {
        if self.used() == 0 {
            return HashSet::new();
        }
        self.marks(|record| self.usage.contains(record.position())).map(|(mark, _)| mark).collect()
    }

    /// Notes as used the rules that were used in another version of the list. Takes time in the number of all rules.
    pub fn note_used(&self, marks: &HashSet<Mark>) {
        if !marks.is_empty() {
            self.marks(|_| true)
                .filter(|(mark, _)| marks.contains(mark))
                .for_each(|(_, position)| self.usage.note(position));
        }
    }

    /// Rules with their marks.
    fn marks(&self, mut wanted: impl FnMut(&RuleRecord) -> bool) -> impl Iterator<Item = (Mark, RulePosition)> {
        let files: Vec<Hash> = self.files.iter().map(|name| Hash::of_file(name)).collect();
        let terms: Vec<Hash> = self.terms.iter().map(|compiled| Hash::of_terms(&compiled.terms)).collect();
        self.store.all().filter(move |record| wanted(record)).filter_map(move |record| {
            let (file, terms) = (files.get(usize::from(record.position().file))?, terms.get(record.terms as usize)?);
            let mark = match record.shape() {
                Shape::Glob | Shape::Regex | Shape::Net => file.rule(record.shape(), &self.written(&record), *terms),
                shape => file.rule(shape, self.store.name(&record), *terms),
            };
            Some((mark, record.position()))
        })
    }

    /// The notes of which rules were used.
    pub(super) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Calls `found` with every rule whose subject matches `host`, in no order, perhaps more than once for one rule.
    pub(super) fn matching<'a>(&'a self, host: &Host, mut found: impl FnMut(RuleRecord, &'a Compiled)) {
        let mut report = |record: RuleRecord| {
            if let Some(terms) = self.terms.get(record.terms as usize) {
                found(record, terms);
            }
        };
        let name = match host {
            Host::Addr(address) => {
                for head in self.nets.holding(*address) {
                    self.chain(Some(head)).for_each(&mut report);
                }
                return;
            }
            Host::Name(name) => name.as_str(),
        };
        let labels = Labels::of(name);
        self.names.matching(&self.store, &labels, |head, front| {
            self.chain(Some(head)).filter(|record| record.shape().takes(front)).for_each(&mut report);
        });
        self.globs.matching(&labels, |head| self.chain(Some(head)).for_each(&mut report));
        self.regexes.matching(name, |head| self.chain(Some(head)).for_each(&mut report));
    }

    /// Calls `found` with every glob rule that matches the name.
    pub(super) fn matching_globs(&self, name: &Labels<'_>, mut found: impl FnMut(RuleRecord)) {
        self.globs.matching(name, |head| self.chain(Some(head)).for_each(&mut found));
    }

    /// The rules chained from `head`.
    pub(super) fn chain(&self, head: Option<u32>) -> impl Iterator<Item = RuleRecord> {
        self.store.chain(head)
    }

    /// The rules of an exact name.
    pub(super) fn of_name(&self, name: &str) -> impl Iterator<Item = RuleRecord> {
        let head = self.names.get(&self.store, name);
        self.chain(head).filter(|record| record.shape() == Shape::Exact)
    }

    /// The wildcard rules of a base of `labels` labels.
    pub(super) fn of_base(&self, base: &str, labels: usize) -> impl Iterator<Item = RuleRecord> {
        let head = if self.has_depth(labels) { self.names.get(&self.store, base) } else { None };
        self.chain(head).filter(|record| record.shape() != Shape::Exact)
    }

    pub(super) fn location(&self, position: RulePosition) -> Option<super::Location> {
        let file = Arc::clone(self.files.get(usize::from(position.file))?);
        Some(super::Location { file, line: position.line })
    }

    /// The networks of `deny` rules, which apply to the addresses of names.
    pub(super) fn denied(&self) -> &Arc<AddressSet> {
        &self.denied
    }

    /// An empty set to share.
    pub(super) fn none_denied(&self) -> &Arc<AddressSet> {
        &self.none_denied
    }

    /// The TCP ports that some rule could allow.
    pub(super) fn open_ports(&self) -> &OpenPorts {
        &self.open_ports
    }

    pub(super) fn compiled(&self, record: &RuleRecord) -> Option<&Compiled> {
        self.terms.get(record.terms as usize)
    }

    /// Could a base of a wildcard have this many labels?
    pub(super) fn has_depth(&self, labels: usize) -> bool {
        self.names.has_base_depth(labels)
    }

    /// Every rule, in the order in which they were added.
    pub(super) fn records(&self) -> impl Iterator<Item = RuleRecord> {
        self.store.all()
    }

    /// The rule at a place in the store.
    pub(super) fn record(&self, at: u32) -> Option<RuleRecord> {
        self.store.get(at)
    }

    /// The name that all names of a name rule or a glob end in; the whole name of an exact rule.
    pub(super) fn tail(&self, record: &RuleRecord) -> &[u8] {
        match record.shape() {
            Shape::Glob => self.glob(record).map_or(&[], |glob| glob.tail().as_bytes()),
            _ => self.store.name_bytes(record),
        }
    }

    /// The pattern of a glob rule.
    pub(super) fn glob(&self, record: &RuleRecord) -> Option<&globs::Glob> {
        self.globs.get(self.store.index(record) as usize)
    }

    /// The names, if any, above all names of a regex rule.
    pub(super) fn regex_tails(&self, record: &RuleRecord) -> impl Iterator<Item = &str> {
        self.regexes.tails(self.store.index(record) as usize)
    }

    /// Do the files that `sees` accepts allow some name below `name`?
    pub(super) fn allow_below(&self, name: &str, sees: impl Fn(u16) -> bool) -> bool {
        self.parents.has_below(self, name, sees)
    }

    /// The subject of a rule as it is written.
    pub(super) fn written(&self, record: &RuleRecord) -> String {
        let at = self.store.index(record) as usize;
        let name = || self.store.name(record);
        match record.shape() {
            Shape::Exact => name().to_owned(),
            Shape::OneLabel => format!("*.{}", name()).trim_end_matches('.').to_owned(),
            Shape::Below => format!("**.{}", name()).trim_end_matches('.').to_owned(),
            Shape::SelfAndBelow => format!(".{}", name()),
            Shape::Glob => self.globs.written(at),
            Shape::Regex => self.regexes.written(at),
            Shape::Net => self.networks.get(at).map_or_else(String::new, written_net),
        }
    }
}

/// A network as written in a rule: a single address without its length, IPv6 in brackets.
fn written_net(net: &IpNet) -> String {
    let whole = net.prefix_len() == net.max_prefix_len();
    match net {
        IpNet::V4(v4) if whole => v4.addr().to_string(),
        IpNet::V6(v6) if whole => format!("[{}]", v6.addr()),
        IpNet::V4(_) => net.to_string(),
        IpNet::V6(_) => format!("[{net}]"),
    }
}

/// Collects rules, in any order, and compiles them.
#[derive(Debug)]
pub struct Builder {
    rules: Rules,
    today: Date,
    files: HashMap<Arc<str>, FileId, RandomState>,
    terms: HashMap<Terms, u32, RandomState>,
    /// The terms of the last rule: neighbours mostly share theirs.
    last: Option<(Terms, u32)>,
    /// The last line with a rule, by file.
    lines: Vec<u32>,
    globs: globs::Collector,
    regexes: RegexesBuilder,
    denied: DeniedNets,
    overflow: bool,
}

impl Builder {
    /// An empty list; a rule whose `until` is before `today` is expired.
    pub fn new(today: Date) -> Builder {
        Builder {
            rules: Rules::default(),
            today,
            files: HashMap::default(),
            terms: HashMap::default(),
            last: None,
            lines: Vec::new(),
            globs: globs::Collector::default(),
            regexes: RegexesBuilder::default(),
            denied: DeniedNets::default(),
            overflow: false,
        }
    }

    /// Makes room for this many names at once, instead of little by little.
    pub fn make_room(&mut self, names: usize) {
        self.rules.names.make_room(&self.rules.store, names);
    }

    /// Returns the id of a file, by its name within the whitelist dir. Of two rules that decide alike, the one in
    /// the file named first is reported, so name files in the order of the list.
    pub fn file(&mut self, name: &str) -> FileId {
        if let Some(id) = self.files.get(name) {
            return *id;
        }
        let Ok(id) = u16::try_from(self.rules.files.len()) else {
            self.overflow = true;
            return FileId(u16::MAX);
        };
        let name: Arc<str> = Arc::from(name);
        self.rules.files.push(Arc::clone(&name));
        self.lines.push(0);
        self.files.insert(name, FileId(id));
        FileId(id)
    }

    /// Adds the rule at `line` (from 1) of `file`.
    ///
    /// # Errors
    /// When the subject cannot be compiled; the builder stays usable, so that all problems of a list
    /// can be reported at once.
    pub fn rule(&mut self, file: FileId, line: u32, subject: &Subject<'_>, terms: &Terms) -> Result<(), BuildError> {
        let interned = self.intern(terms)?;
        if let Some(last) = self.lines.get_mut(usize::from(file.0)) {
            *last = line.max(*last);
        }
        let said = |shape| Said { position: RulePosition { file: file.0, line }, shape };
        match *subject {
            Subject::Name { base, scope } => self.name(base, said(Shape::of(scope)), interned)?,
            Subject::Glob { pattern, scope } => {
                let collapsed = globs::check(pattern, scope)?;
                match globs::expand(&collapsed) {
                    Some(names) => {
                        names.iter().try_for_each(|name| self.name(name, said(Shape::of(scope)), interned))?;
                    }
                    None => {
                        let (index, head) = self.globs.slot(&collapsed, scope)?;
                        self.rules.store.push_index(said(Shape::Glob), interned, index, head)?;
                    }
                }
            }
            Subject::Regex(pattern) => self.regex(pattern, false, said(Shape::Regex), interned)?,
            Subject::SearchRegex(pattern) => self.regex(pattern, true, said(Shape::Regex), interned)?,
            Subject::Net(net) => self.net(net, terms, said(Shape::Net), interned)?,
        }
        if let Some(count) = self.rules.counts.get_mut(RuleKind::of(subject, terms.effect) as usize) {
            *count += 1;
        }
        Ok(())
    }

    /// Compiles what was collected.
    ///
    /// # Errors
    /// If the list as a whole exceeds a limit.
    pub fn build(mut self) -> Result<Rules, BuildError> {
        if self.overflow {
            return Err(BuildError::TooLarge);
        }
        let mut rules = self.rules;
        rules.usage = Usage::new(&self.lines);
        rules.globs = self.globs.build();
        rules.regexes = self.regexes.build()?;
        rules.store.shrink();
        rules.nets.shrink();
        rules.networks.shrink_to_fit();
        self.denied.shrink();
        rules.denied = Arc::new(AddressSet::of(self.denied));
        rules.parents = Parents::of(&rules);
        rules.next_expiry =
            rules.terms.iter().filter(|compiled| !compiled.expired()).filter_map(|compiled| compiled.terms.until).min();
        rules.open_ports = OpenPorts::of(rules.terms.iter());
        Ok(rules)
    }

    fn intern(&mut self, terms: &Terms) -> Result<u32, BuildError> {
        if let Some((last, id)) = &self.last
            && last == terms
        {
            return Ok(*id);
        }
        let id = match self.terms.get(terms) {
            Some(id) => *id,
            None => {
                let id = u32::try_from(self.rules.terms.len()).map_err(|_| BuildError::TooLarge)?;
                let expired = terms.until.is_some_and(|until| until < self.today);
                self.rules.terms.push(Compiled::new(terms.clone(), expired));
                self.terms.insert(terms.clone(), id);
                id
            }
        };
        self.last = Some((terms.clone(), id));
        Ok(id)
    }

    fn name(&mut self, base: &str, said: Said, terms: u32) -> Result<(), BuildError> {
        if base.is_empty() && said.shape == Shape::Exact {
            return Err(BuildError::Name { name: String::new() });
        }
        self.rules.names.insert(&mut self.rules.store, base, said, terms)
    }

    fn regex(&mut self, pattern: &str, search: bool, said: Said, terms: u32) -> Result<(), BuildError> {
        let (index, head) = self.regexes.slot(pattern, search)?;
        self.rules.store.push_index(said, terms, index, head)
    }

    fn net(&mut self, net: IpNet, terms: &Terms, said: Said, interned: u32) -> Result<(), BuildError> {
        let net = net.trunc();
        let index = u32::try_from(self.rules.networks.len()).map_err(|_| BuildError::TooLarge)?;
        self.rules.networks.push(net);
        self.rules.store.push_index(said, interned, index, self.rules.nets.slot(net))?;
        let expired = terms.until.is_some_and(|until| until < self.today);
        if terms.effect == Effect::Deny && !expired {
            self.denied.insert(net, terms.reach);
        }
        Ok(())
    }
}
