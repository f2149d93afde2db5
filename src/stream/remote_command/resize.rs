//! Sizes of a terminal: JSON objects one after the other, in parts as they come.

use serde::Deserialize;

/// Of an object that has not come whole.
const MAX_OBJECT: usize = 1 << 10;

/// In characters, both above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Size {
    #[serde(rename = "Width", alias = "width")]
    pub width: u16,
    #[serde(rename = "Height", alias = "height")]
    pub height: u16,
}

#[derive(Default)]
pub struct Sizes {
    begun: Vec<u8>,
}

impl Sizes {
    /// The last size that is whole with these bytes. What makes no sense is dropped.
    pub fn read(&mut self, bytes: &[u8]) -> Option<Size> {
        let mut last = None;
        for part in bytes.split_inclusive(|byte| *byte == b'}') {
            self.begun.extend_from_slice(part);
            if part.ends_with(b"}") {
                let size = serde_json::from_slice::<Size>(&self.begun).ok();
                // A terminal that is hidden has none.
                last = size.filter(|size| size.width > 0 && size.height > 0).or(last);
                self.begun.clear();
            }
            if self.begun.len() > MAX_OBJECT {
                self.begun.clear();
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_come_in_parts_and_in_a_row() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.read(b"{\"Width\":80,\"Hei"), None);
        assert_eq!(sizes.read(b"ght\":24}\n"), Some(Size { width: 80, height: 24 }));
        let two = b"{\"Width\":1,\"Height\":2}\n{\"Width\":3,\"Height\":4}\n";
        assert_eq!(sizes.read(two), Some(Size { width: 3, height: 4 }));
        assert_eq!(sizes.read(b"{\"Width\":-1,\"Height\":70000}"), None);
        assert_eq!(sizes.read(b"{\"Width\":0,\"Height\":0}"), None);
        assert_eq!(sizes.read(b"{\"width\":7,\"height\":8}"), Some(Size { width: 7, height: 8 }));
        assert_eq!(sizes.read(b"nonsense}{\"Width\":5,\"Height\":6}"), Some(Size { width: 5, height: 6 }));
    }

    proptest! {
        #[test]
        fn memory_is_bounded(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..900), 0..20)) {
            let mut sizes = Sizes::default();
            for part in parts {
                let _ = sizes.read(&part);
                prop_assert!(sizes.begun.len() <= MAX_OBJECT);
            }
        }
    }
}
