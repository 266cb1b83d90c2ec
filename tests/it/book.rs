//! The documents: every page of the book is in its table of contents, every relative link leads to a file and a
//! heading that exist, also where the Debian package installs them, and the front pages stay short. No root, no network.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Documents with links, besides `docs/`.
const OTHERS: [&str; 7] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "systemd/README.md",
    "benches/peers/README.md",
];
/// The longest front pages, in bytes.
const BOUNDS: [(&str, u64); 2] = [("README.md", 12 << 10), ("ARCHITECTURE.md", 15_000)];
/// What the Debian package leaves out, because it is of use only beside the source. Links to it lead nowhere there.
const SOURCE_ONLY: [&str; 8] = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "packaging",
    "whitelist",
    "benches",
];

/// A link of Markdown: its line, from 1, and its destination.
type Link = (usize, String);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Markdown files below `docs/`, relative to the repository, the table of contents left out.
fn pages() -> BTreeSet<PathBuf> {
    fn visit(folder: &Path, pages: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                visit(&path, pages);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.insert(path);
            }
        }
    }
    let mut pages = BTreeSet::new();
    visit(Path::new("docs"), &mut pages);
    assert!(pages.remove(Path::new("docs/SUMMARY.md")));
    pages
}

fn documents() -> BTreeSet<PathBuf> {
    let mut documents = pages();
    documents.extend(OTHERS.map(PathBuf::from));
    documents.insert("docs/SUMMARY.md".into());
    documents
}

/// The lines outside of fenced blocks, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((number + 1, line))
    })
}

/// Leaves out what is between backticks: a rule or a regex may look like a link. Words in backticks that are a link's text
/// are dropped with it, its destination stays.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// All links of a document that are not to other hosts.
fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        for rest in without_code(line).split("](").skip(1) {
            let target = rest.split_once(')').map_or(rest, |(target, _)| target).trim();
            if !target.starts_with("https://") && !target.starts_with("http://") {
                links.push((number, target.to_owned()));
            }
        }
    }
    links
}

/// The anchors of a page: its headings as hosts of repositories and mdBook name them, and those that are written as
/// `<a id="…">`.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(text) {
        if let Some(heading) = line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim()) {
            let slug: String = heading
                .to_lowercase()
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                    _ => None,
                })
                .collect();
            // A second heading of the same words gets a number.
            let mut unique = slug.clone();
            for n in 1.. {
                if anchors.insert(unique.clone()) {
                    break;
                }
                unique = format!("{slug}-{n}");
            }
        }
        for rest in line.split("<a id=\"").skip(1) {
            anchors.insert(rest.split('"').next().unwrap_or_default().to_owned());
        }
    }
    anchors
}

/// Joins a link's path to the folder of its page, without `..` in the result; `None` if it leaves the repository.
fn resolve(page: &Path, target: &str) -> Option<PathBuf> {
    let mut path = page.parent()?.to_owned();
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir if !path.pop() => return None,
            Component::ParentDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// What is wrong with a link.
fn fault(page: &Path, text: &str, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let (path, text) = if path.is_empty() {
        (page.to_owned(), text.to_owned())
    } else {
        let Some(path) = resolve(page, path) else { return Some("leaves the repository".to_owned()) };
        let absolute = root().join(&path);
        if !absolute.exists() {
            return Some(format!("{} does not exist", path.display()));
        }
        let text = if anchor.is_some() { read(&path) } else { String::new() };
        (path, text)
    };
    let anchor = anchor?;
    (!anchors(&text).contains(anchor)).then(|| format!("{} has no heading #{anchor}", path.display()))
}

#[test]
fn every_page_is_in_the_table_of_contents_and_every_entry_is_a_page() {
    let contents = Path::new("docs/SUMMARY.md");
    let listed: Vec<PathBuf> =
        links(&read(contents)).iter().map(|(_, target)| resolve(contents, target).unwrap()).collect();
    let unique: BTreeSet<PathBuf> = listed.iter().cloned().collect();
    assert_eq!(unique.len(), listed.len(), "a page is listed twice in {}", contents.display());
    assert_eq!(unique, pages());
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_exist() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for page in documents() {
        let text = read(&page);
        for (line, target) in links(&text) {
            seen += 1;
            if let Some(fault) = fault(&page, &text, &target) {
                faults.push(format!("{}:{line}: ({target}): {fault}", page.display()));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    assert!(seen > 100, "only {seen} links were found");
}

#[test]
fn links_in_the_debian_package_lead_to_what_it_installs() {
    let list = read(Path::new("packaging/debian/install"));
    let mut installed = BTreeSet::new();
    for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [source, target, _mode] = fields[..] else { panic!("{line}: three fields are expected") };
        let (source, Some(folder)) = (Path::new(source), target.strip_prefix("usr/share/doc/outgate/")) else {
            continue;
        };
        let matches: Vec<PathBuf> = match source.file_name().unwrap().to_str().unwrap() {
            "*.md" => pages().into_iter().filter(|page| page.parent() == source.parent()).collect(),
            _ => vec![source.to_owned()],
        };
        for file in matches.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
            let place = Path::new(folder).join(file.file_name().unwrap());
            assert_eq!(place, *file, "the package moves a document, so its links break");
            installed.insert(place);
        }
    }
    assert!(pages().is_subset(&installed), "the package lacks pages: {:?}", pages().difference(&installed));
    let mut faults = Vec::new();
    for page in &installed {
        for (line, target) in links(&read(page)) {
            let path = target.split('#').next().unwrap();
            let leads = if path.is_empty() { page.clone() } else { resolve(page, path).unwrap() };
            let source_only = SOURCE_ONLY.iter().any(|left_out| leads.starts_with(left_out));
            if !installed.contains(&leads) && !source_only {
                faults.push(format!("{}:{line}: ({target})", page.display()));
            }
        }
    }
    assert!(faults.is_empty(), "not in the package:\n{}", faults.join("\n"));
}

#[test]
fn the_front_pages_are_short() {
    for (page, most) in BOUNDS {
        let length = fs::metadata(root().join(page)).unwrap().len();
        assert!(length <= most, "{page} has {length} bytes, {most} at most: move details to docs/");
    }
}

#[test]
fn the_number_of_shipped_rules_is_the_one_that_is_told() {
    let lists = fs::read_dir(root().join("whitelist")).unwrap();
    let texts = lists.map(|list| fs::read_to_string(list.unwrap().path()).unwrap());
    let is_rule = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let rules: usize = texts.map(|text| text.lines().filter(|line| is_rule(line)).count()).sum();
    for page in ["README.md", "docs/introduction.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        assert!(text.contains(&format!("have {rules} rules")), "{page} does not say that {rules} rules are shipped");
    }
}

#[test]
fn broken_links_are_found() {
    let page = Path::new("docs/tour.md");
    let text = "# A heading, `with code`\n\n<a id=\"row\"></a>\n\n```\n[in a block](nowhere.md)\n```\n\
        `[in code](nowhere.md)` [a](networks.md) [b](#a-heading-with-code) [`c`](nowhere.md) [d](#row)\n\
        [e](rules.md#addresses) [f](rules.md#nothing) [g](#nothing) [h](../../outside.md) [i](https://example.org/)\n";
    let faults: Vec<String> = links(text)
        .iter()
        .filter_map(|(line, target)| fault(page, text, target).map(|fault| format!("{line} {fault}")))
        .collect();
    let wanted = [
        "8 docs/nowhere.md does not exist",
        "9 docs/rules.md has no heading #nothing",
        "9 docs/tour.md has no heading #nothing",
        "9 leaves the repository",
    ];
    assert_eq!(faults, wanted);
}
