//! Sums of files, by which hosts can be compared, and which an operator can compute with sha256sum(1).

use ring::digest::{Context, SHA256};

/// Returns the SHA-256, in hexadecimal, of the lines `SUM  NAME` of these files, as sha256sum(1) prints them. The
/// contents come in pieces, so that a caller with large files can yield in between.
pub fn of<'f, P: IntoIterator<Item = &'f [u8]>>(files: impl IntoIterator<Item = (&'f str, P)>) -> String {
    let mut lines = Context::new(&SHA256);
    for (name, pieces) in files {
        let mut content = Context::new(&SHA256);
        pieces.into_iter().for_each(|piece| content.update(piece));
        lines.update(format!("{}  {name}\n", hexadecimal(content.finish().as_ref())).as_bytes());
    }
    hexadecimal(lines.finish().as_ref())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_sum_is_that_of_the_sums_that_a_shell_prints() {
        let folder = tempfile::tempdir().unwrap();
        let files = [("10-a.rules", "ipfs.io\n"), ("conf.d/50-b.toml", ""), ("local.rules", "a\nb")];
        std::fs::create_dir(folder.path().join("conf.d")).unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let command = "LC_ALL=C; export LC_ALL; sha256sum *.rules conf.d/*.toml | sort -k2 | sha256sum | cut -d' ' -f1";
        let printed = Command::new("sh").args(["-c", command]).current_dir(folder.path()).output().unwrap();
        let sum = of(files.map(|(name, content)| (name, [content.as_bytes()])));
        assert_eq!(sum, String::from_utf8(printed.stdout).unwrap().trim());
        assert_ne!(sum, of(files[..2].iter().map(|(name, content)| (*name, [content.as_bytes()]))));
    }
}
