"""The words that the study's cases are made of. Common ones, so that a tokenizer makes about one token of each."""

NAMES = [
    "Anna", "Peter", "Maria", "David", "Laura", "Simon", "Clara", "Oscar", "Nina", "Victor", "Emma", "Lucas", "Julia",
    "Martin", "Sarah", "Daniel", "Alice", "Robert", "Helen", "Thomas",
]  # fmt: skip
PLACES = [
    "harbour", "library", "market", "station", "garden", "museum", "bakery", "castle", "airport", "theatre", "mill",
    "school", "farm", "hotel", "stadium", "hospital",
]  # fmt: skip
GIFTS = [
    "lamp", "ring", "map", "coat", "book", "letter", "basket", "camera", "ticket", "blanket", "hammer", "flute",
]  # fmt: skip
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "silver"]
WORDS = [
    "river", "stone", "window", "candle", "forest", "bridge", "mirror", "pepper", "island", "winter", "copper",
    "butter", "rocket", "violin", "desert", "planet", "tiger", "cotton", "ladder", "button", "pencil", "ocean",
    "dragon", "marble", "lemon", "anchor", "saddle", "tunnel", "carpet", "kettle", "needle", "barrel",
]  # fmt: skip
COUNTED = ["cup", "pen", "book", "key", "plate", "coin", "apple", "shell", "stamp", "spoon", "card", "ball"]
NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
]  # fmt: skip
ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth"}

# What is done, to what; two or three of the same kind are told apart by a word of the list.
DEEDS = [
    ("cut", "wire", COLOURS), ("open", "door", COLOURS), ("press", "button", COLOURS), ("wear", "coat", COLOURS),
    ("ring", "bell", ["small", "large", "old", "new"]), ("feed", "dog", ["young", "old", "black", "white"]),
    ("water", "plant", ["tall", "short", "dry", "green"]), ("read", "letter", ["first", "second", "third", "last"]),
    ("paint", "wall", ["north", "south", "east", "west"]), ("take", "road", ["left", "right", "upper", "lower"]),
    ("sell", "house", ["large", "small", "old", "new"]), ("clean", "room", ["big", "small", "upper", "lower"]),
]  # fmt: skip

# country or state: its capital, and a larger or better known city
CAPITALS = {
    "Australia": ("Canberra", "Sydney"), "Turkey": ("Ankara", "Istanbul"), "Canada": ("Ottawa", "Toronto"),
    "Switzerland": ("Bern", "Zurich"), "Morocco": ("Rabat", "Casablanca"), "New Zealand": ("Wellington", "Auckland"),
    "Nigeria": ("Abuja", "Lagos"), "Pakistan": ("Islamabad", "Karachi"), "Vietnam": ("Hanoi", "Saigon"),
    "Tanzania": ("Dodoma", "Dar es Salaam"), "Ecuador": ("Quito", "Guayaquil"), "Scotland": ("Edinburgh", "Glasgow"),
    "Malawi": ("Lilongwe", "Blantyre"), "Norway": ("Oslo", "Bergen"), "Belize": ("Belmopan", "Belize City"),
    "Syria": ("Damascus", "Aleppo"), "Oregon": ("Salem", "Portland"), "Texas": ("Austin", "Houston"),
    "California": ("Sacramento", "Los Angeles"), "Florida": ("Tallahassee", "Miami"), "Alaska": ("Juneau", "Anchorage"),
    "Illinois": ("Springfield", "Chicago"), "Michigan": ("Lansing", "Detroit"), "Nevada": ("Carson City", "Las Vegas"),
    "Kentucky": ("Frankfort", "Louisville"), "Pennsylvania": ("Harrisburg", "Philadelphia"),
}  # fmt: skip
# thing: its colour, and another
COLOURED = {
    "snow": ("white", "blue"), "a ripe banana": ("yellow", "green"), "coal": ("black", "white"),
    "a ruby": ("red", "blue"), "an emerald": ("green", "blue"), "a sapphire": ("blue", "red"),
    "an egg yolk": ("yellow", "white"), "a canary": ("yellow", "red"), "a polar bear": ("white", "black"),
    "chocolate": ("brown", "white"), "a ripe tomato": ("red", "green"), "a raven": ("black", "white"),
    "spinach": ("green", "red"),
}  # fmt: skip
# word: what is right, as alternatives, and what is not
OPPOSITES = {
    "shallow": ("deep", "low"), "ancient": ("modern|new|recent|contemporary", "old"), "victory": ("defeat|loss", "win"),
    "guilty": ("innocent", "bad"), "borrow": ("lend|loan|give", "steal"), "ascend": ("descend", "rise"),
    "rough": ("smooth|gentle|soft", "hard"), "absent": ("present", "missing"), "expand": ("contract|shrink", "grow"),
    "minimum": ("maximum", "least"), "buy": ("sell", "purchase"), "war": ("peace", "battle"),
    "scarce": ("abundant|plentiful|abundance|common", "rare"),
    "generous": ("stingy|selfish|mean|greedy|miserly|ungenerous", "kind"),
}  # fmt: skip
# animal: what its young is called, and what another's is
YOUNG = {
    "a cow": ("calf", "cub"), "a sheep": ("lamb", "kid"), "a goose": ("gosling", "duckling"),
    "a horse": ("foal", "calf"), "a deer": ("fawn", "calf"), "a swan": ("cygnet", "duckling"),
    "a kangaroo": ("joey", "cub"), "a frog": ("tadpole", "frog"), "a bear": ("cub", "calf"),
    "a pig": ("piglet", "puppy"), "a hare": ("leveret", "rabbit"), "an eagle": ("eaglet", "chick"),
}  # fmt: skip
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip

# A haystack's sentence is one of each. No name, number, colour, place or gift of the above stands in it.
WHO = [
    "The gardener", "An old sailor", "The young teacher", "A quiet neighbour", "The postman", "Her grandmother",
    "The night guard", "A tired farmer", "The little boy", "A tall woman", "The painter", "His uncle", "The judge",
    "A group of students", "The driver", "The doctor", "A stranger", "The choir", "The carpenter", "Every visitor",
]  # fmt: skip
DID = [
    "swept the floor", "waited for the bus", "talked about the weather", "looked at the clouds", "repaired the roof",
    "sang an old song", "closed the shutters", "drank some tea", "wrote a long story", "fell asleep", "told a joke",
    "forgot the time", "walked along the path", "listened to the radio", "cooked a simple soup", "watched the birds",
    "carried the boxes upstairs", "cleaned the kitchen", "asked for a glass of water", "sat down on a bench",
]  # fmt: skip
WHEN = [
    "before the rain came", "in the early morning", "while the others were away", "after a long day", "without a word",
    "as on every Sunday", "until the sun went down", "near the edge of the village", "with great care",
    "during the holidays", "because nobody else would", "for most of the evening", "at the end of the street",
    "when the work was done", "in spite of the noise", "like many years ago",
]  # fmt: skip
