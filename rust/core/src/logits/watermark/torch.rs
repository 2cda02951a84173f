//! What the schemes take from torch's generator on the CPU: MT19937, and what `randperm` and `randint` make of it.

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// The Mersenne Twister of Matsumoto and Nishimura (1998), MT19937, seeded as `torch.Generator().manual_seed` does.
pub struct Generator {
    state: [u32; WORDS],
    next: usize,
}

impl Generator {
    /// Of a seed torch takes the low 32 bits.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        let mut last = seed;
        for (word, index) in state.iter_mut().zip(0_u32..).skip(1) {
            last = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index);
            *word = last;
        }
        Self { state, next: WORDS }
    }

    /// Uniform over 32 bits.
    pub fn next(&mut self) -> u32 {
        if self.next >= WORDS {
            self.twist();
            self.next = 0;
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for index in 0..WORDS {
            let mixed = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % WORDS] & 0x7fff_ffff);
            let odd = if mixed & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[index] = self.state[(index + SHIFT) % WORDS] ^ (mixed >> 1) ^ odd;
        }
    }
}

/// The first `count` of `torch.randperm(size)`: a shuffle by Fisher and Yates settles its places from the front.
pub fn permutation(seed: u32, size: u32, count: usize) -> Vec<u32> {
    let mut generator = Generator::new(seed);
    let mut items: Vec<u32> = (0..size).collect();
    // torch leaves the last place alone, which draws nothing then.
    for (place, left) in (0..items.len().saturating_sub(1)).zip((1..=size).rev()).take(count) {
        let other = place + (generator.next() % left) as usize;
        items.swap(place, other);
    }
    items.truncate(count);
    items
}

/// Whether `item` is among the first `count` (less than `size`) of `torch.randperm(size)`.
///
/// Follows the one item through the shuffle, without a list.
pub fn is_in_permutation(seed: u32, size: u32, count: usize, item: u32) -> bool {
    let mut generator = Generator::new(seed);
    let mut at = item;
    for (place, left) in (0..size).zip((1..=size).rev()).take(count) {
        let other = place + generator.next() % left;
        if other == at {
            return true;
        }
        if place == at {
            at = other;
        }
    }
    false
}

/// `torch.randint(0, 2, (count,))`.
pub fn coin_flips(seed: u32, count: usize) -> Vec<bool> {
    let mut generator = Generator::new(seed);
    (0..count).map(|_| generator.next() % 2 == 1).collect()
}
