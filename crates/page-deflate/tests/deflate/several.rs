//! Several pieces at a time are decoded like one after the other.

use page_deflate::{
    Deflater, Effort, Histogram, InflateError, PageDeflater, PageInflater, RunInflater, SharedCode,
    SharedInflater, WindowSize,
};
use testkit::iterations;
use testkit::pages::{Random, packet, push_page};
use testkit::zlib::Deflate;

/// The three decoders.
enum Decoder {
    Pages(PageInflater),
    Runs(RunInflater),
    Bodies(SharedInflater),
}

impl Decoder {
    fn one(&mut self, piece: &[u8], page: &mut [u8]) -> Result<(), InflateError> {
        match self {
            Self::Pages(decoder) => decoder.inflate(piece, page),
            Self::Runs(decoder) => decoder.inflate(piece, page),
            Self::Bodies(decoder) => decoder.inflate(piece, page),
        }
    }

    fn all(&mut self, pieces: &[Vec<u8>], pages: &mut [Vec<u8>]) -> Result<(), InflateError> {
        let pieces = pieces.iter().map(Vec::as_slice);
        let all = pieces.zip(pages.iter_mut().map(Vec::as_mut_slice));
        match self {
            Self::Pages(decoder) => decoder.inflate_all(all),
            Self::Runs(decoder) => decoder.inflate_all(all),
            Self::Bodies(decoder) => decoder.inflate_all(all),
        }
    }

    /// Decodes pieces to pages of these sizes together and one by one, and compares. Returns
    /// whether all of them are good.
    fn agrees(&mut self, pieces: &[Vec<u8>], sizes: &[usize]) -> bool {
        let room = |byte| -> Vec<_> { sizes.iter().map(|&size| vec![byte; size]).collect() };
        let (mut one, mut all) = (room(0xaa), room(0x55));
        let places = pieces.iter().zip(&mut one);
        let outcomes: Vec<_> = places.map(|(piece, page)| self.one(piece, page)).collect();
        match self.all(pieces, &mut all) {
            Ok(()) => {
                assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
                assert!(one == all);
                true
            }
            // Of several errors, any may be reported.
            Err(error) => {
                assert!(outcomes.contains(&Err(error)), "{error:?}, {outcomes:?}");
                false
            }
        }
    }
}

/// Sometimes damages one of the pieces, or asks for more or less than a piece holds.
fn damage(random: &mut Random, pieces: &mut [Vec<u8>], sizes: &mut [usize]) {
    let index = random.below(pieces.len());
    let piece = &mut pieces[index];
    let place = random.below(piece.len().max(1));
    match random.below(6) {
        0 => sizes[index] += 1,
        1 => sizes[index] -= 1,
        2 => piece.truncate(place),
        3 => piece.push(0),
        _ => {
            if let Some(byte) = piece.get_mut(place) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
}

fn check(
    random: &mut Random,
    decoder: &mut Decoder,
    rounds: usize,
    mut piece: impl FnMut(&mut Random, &[u8]) -> Option<Vec<u8>>,
) {
    let (mut good, mut bad) = (0, 0);
    for _ in 0..rounds {
        let (mut pieces, mut sizes) = (Vec::new(), Vec::new());
        for _ in 0..random.below(7) {
            let size = [64, 1024, 4096, 4096, 4096, 20_000][random.below(6)];
            let mut page = Vec::new();
            push_page(random, size, &mut page);
            if let Some(piece) = piece(random, &page) {
                pieces.push(piece);
                sizes.push(page.len());
            }
        }
        assert!(decoder.agrees(&pieces, &sizes));
        good += 1;
        if !pieces.is_empty() {
            damage(random, &mut pieces, &mut sizes);
            bad += usize::from(!decoder.agrees(&pieces, &sizes));
        }
    }
    assert!(good > bad && bad > rounds / 4, "{good} {bad}");
}

#[test]
fn complete_streams() {
    let mut random = Random::new(50);
    let mut deflater = PageDeflater::new(Effort::Balanced);
    let mut zlib = [0, 1, 9].map(|level| Deflate::new(level, -15));
    let mut decoder = Decoder::Pages(PageInflater::new());
    check(
        &mut random,
        &mut decoder,
        iterations(300),
        |random, page| {
            let mut out = Vec::new();
            let is_written = match random.below(5) {
                0 => deflater.fixed_page(page, &mut out),
                1 => deflater.dynamic_page(page, &mut out),
                level => {
                    zlib[level - 2].whole(page, &mut out);
                    true
                }
            };
            is_written.then_some(out)
        },
    );
}

#[test]
fn runs() {
    let mut random = Random::new(51);
    let window = WindowSize::default();
    let mut deflaters = Effort::ALL.map(|effort| Deflater::new(window, effort));
    let mut decoder = Decoder::Runs(RunInflater::new());
    check(
        &mut random,
        &mut decoder,
        iterations(200),
        |random, page| {
            let mut out = Vec::new();
            let deflater = &mut deflaters[random.below(Effort::ALL.len())];
            let habit = deflater.survey(page);
            // A run may consist of several.
            let (one, two) = page.split_at(random.below(page.len()));
            deflater.compress_alone(one, habit, &mut out);
            deflater.compress(two, &mut out);
            Some(out)
        },
    );
}

#[test]
fn bodies() {
    let mut random = Random::new(52);
    let mut deflater = PageDeflater::new(Effort::Balanced);
    let mut histogram = Histogram::new();
    for page in packet(&mut random, 64, 4096).chunks(4096) {
        deflater.count(page, &mut histogram);
    }
    let lengths = histogram.code_lengths();
    let code = SharedCode::new(&lengths);
    let mut decoder = Decoder::Bodies(SharedInflater::new(&lengths));
    check(&mut random, &mut decoder, iterations(300), |_, page| {
        let mut out = Vec::new();
        deflater.body(page, &code, &mut out).then_some(out)
    });
}
