"""What the generated shop sells: worlds, product families and the words of titles and descriptions.

A *world* (printing) has *families* (printer, toner, drum). A *series* is one product line of a world: a
brand, a line name, a tier and the code of a technical standard ("TK-420") by which its products fit each
other. Every family has a product or a few for every series, and every product's text names its code and
its tier; the world shows in its nouns. The same brands and line names occur in many worlds, and those of a
competitor in other makers' accessories, so names alone lead astray.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A kind of product, and phrases to describe one.

    Attributes:
        slug: start of its item ids.
        head: singular noun of the running text.
        kinds: nouns of the titles; a series has at most one product of each.
        fits: verb phrases on compatibility, each with `{code}`; `{line}` is the series' line name.
        uses: phrases that start with "for".
        features: noun phrases.
    """

    slug: str
    head: str
    kinds: tuple[str, ...]
    fits: tuple[str, ...]
    uses: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Families that are used together; the first is the device, the others are what it takes."""

    name: str
    prefixes: tuple[str, ...]
    families: tuple[Family, ...]


TIERS = ("budget", "mid", "premium")
TIER_WORDS = (
    ("entry-level", "budget", "low-cost"),
    ("mid-range", "everyday", "all-round"),
    ("professional", "premium", "high-end"),
)
SHAPES = (
    "{Tier} {head} {use}. {Fits}. {Feature}.",
    "{Fits}. {Tier} {head} {use} with {feature}.",
    "With {feature}, this {tier} {head} {fits}. Made {use}.",
    "{Tier} {head} with {feature}. {Fits}. Designed {use}.",
    "This {tier} {head} {fits}. {Feature}, {use}.",
)
DEVICE_TITLES = ("{brand} {line} {kind}", "{line} {kind} by {brand}", "{brand} {kind} {line}")
ACCESSORY_TITLES = ("{brand} {kind}", "{Kind} by {brand}", "{brand} {kind} {code}")

# fmt: off
# One phrase list a line, so that a family reads at a glance.
BRANDS = (
    "Halden", "Norvik", "Castera", "Brightwell", "Ostrava", "Lumen", "Kestrel", "Tavira", "Morrow", "Ansel",
    "Verdana", "Quill", "Solberg", "Harrow", "Pellworm", "Dunmore", "Fjord", "Garnet", "Ibis", "Juniper", "Larkin",
    "Mistral", "Ollander", "Perrin",
)
LINES = (
    "Aurora", "Summit", "Harbor", "Falcon", "Cedar", "Nimbus", "Atlas", "Willow", "Comet", "Granite", "Meadow",
    "Raven", "Delta", "Ember", "Horizon", "Lynx", "Maple", "Nova", "Orbit", "Pioneer", "Quartz", "Ridge", "Sierra",
    "Tundra", "Vega", "Zephyr", "Breeze", "Canyon", "Drift", "Echo", "Flint", "Glacier",
)

WORLDS = (
    World("printing", ("TK", "LC", "MX"), (
        Family(
            "printer", "printer", ("mono laser printer", "all-in-one laser printer"),
            ("takes {code} cartridges", "prints with cartridge code {code}", "runs on {code} toner"),
            ("for letters and invoices", "for a shared desk", "for contracts and reports"),
            ("quiet duplex printing", "a 250-sheet tray", "wireless setup", "a fast first page"),
        ),
        Family(
            "toner", "cartridge", ("black toner cartridge", "high-yield toner cartridge", "colour toner set"),
            ("replaces cartridge code {code}", "is the {code} refill for {line} machines", "clicks into {code} bays"),
            ("for crisp text", "for long print runs", "for daily paperwork"),
            ("smudge-free powder", "a chip that reports its level", "an easy pull seal", "sharp grey tones"),
        ),
        Family(
            "drum", "imaging unit", ("replacement drum unit", "drum and fuser kit"),
            ("works beside {code} cartridges", "suits engines of type {code}", "fits {line} models that take {code}"),
            ("for streak-free pages", "for scheduled maintenance"),
            ("a life of 12,000 pages", "tool-free fitting", "a coated roller"),
        ),
    )),
    World("phones", ("PN", "HX", "Q"), (
        Family(
            "phone", "smartphone", ("smartphone", "5G smartphone"),
            ("has the {code} body", "ships in body format {code}", "is built on the {code} frame"),
            ("for calls and messages", "for travel and maps", "for video and social apps"),
            ("a two-day battery", "a bright OLED screen", "a triple rear lens", "dual SIM trays"),
        ),
        Family(
            "case", "case", ("silicone case", "leather wallet case", "shockproof bumper"),
            ("hugs the {code} body", "is cut for body format {code}", "fits {line} handsets, frame {code}"),
            ("for drops and scratches", "for slim pockets", "for outdoor work"),
            ("raised corners", "a card slot", "a grippy back", "precise button cut-outs"),
        ),
        Family(
            "charger", "charger", ("wireless charging dock", "magnetic fast charger"),
            ("aligns with the {code} coil", "docks frame {code}", "charges handsets of format {code}"),
            ("for the bedside table", "for a quick top-up", "for the car"),
            ("a folding stand", "an overheating guard", "a braided cable"),
        ),
    )),
    World("coffee", ("CG", "BR", "VE"), (
        Family(
            "espresso", "coffee machine", ("espresso machine", "capsule coffee machine"),
            ("brews with the {code} group", "uses brew system {code}", "is made for system {code}"),
            ("for the morning rush", "for milk drinks", "for small kitchens"),
            ("a steel steam wand", "a 15-bar pump", "a quick heat-up", "adjustable cup height"),
        ),
        Family(
            "beans", "roast", ("espresso roast beans", "decaf capsule pack", "dark roast capsule pack"),
            ("is dosed for system {code}", "suits the {code} group", "extracts well in {line} brewers with {code}"),
            ("for a long crema", "for flat whites", "for after dinner"),
            ("notes of cocoa and hazelnut", "beans from Huila", "low acidity", "a resealable valve bag"),
        ),
        Family(
            "descaler", "care product", ("descaling solution", "water filter and brush kit"),
            ("cleans the {code} group", "is approved for brew system {code}", "rinses circuits of type {code}"),
            ("for limescale", "for monthly care", "for hard water"),
            ("a citric formula", "a measuring cap", "odour-free rinsing"),
        ),
    )),
    World("cameras", ("RX", "FE", "ZM"), (
        Family(
            "camera", "camera", ("mirrorless camera body", "compact system camera"),
            ("has a {code} mount", "accepts {code} glass", "is built around the {code} bayonet"),
            ("for portraits", "for street scenes", "for wildlife and sport"),
            ("in-body stabilisation", "a tilting screen", "fast eye detection", "weather sealing"),
        ),
        Family(
            "lens", "lens", ("50 mm prime lens", "telephoto zoom lens", "wide-angle lens"),
            ("locks onto the {code} bayonet", "comes in {code} mount", "couples with {line} bodies through {code}"),
            ("for soft backgrounds", "for distant subjects", "for low light"),
            ("nine rounded blades", "a silent focus motor", "fluorine-coated glass", "a metal barrel"),
        ),
        Family(
            "bag", "bag", ("padded shoulder bag", "photo backpack"),
            ("is shaped around {code} kits", "holds bodies and glass of mount {code}", "has dividers cut for {code}"),
            ("for day trips", "for airline cabins"),
            ("a rain cover", "quick side access", "a tripod strap"),
        ),
    )),
    World("reading", ("EB", "KR", "LP"), (
        Family(
            "ereader", "e-reader", ("e-reader", "note-taking e-reader"),
            ("has the {code} panel", "is housed in shell {code}", "uses panel format {code}"),
            ("for novels in bed", "for study and notes", "for the beach"),
            ("a warm front light", "weeks of battery", "page-turn buttons", "a glare-free screen"),
        ),
        Family(
            "cover", "cover", ("fabric sleep cover", "origami stand cover", "water-safe sleeve"),
            ("snaps onto shell {code}", "is sized for the {code} panel", "wakes {line} readers in format {code}"),
            ("for commuting", "for hands-free chapters", "for the handbag"),
            ("a magnetic clasp", "a soft lining", "a hand strap", "recycled felt"),
        ),
        Family(
            "readlight", "add-on", ("clip-on reading light", "stylus with spare nibs"),
            ("clips to shell {code}", "is tuned to panel format {code}", "works on {code} screens"),
            ("for late nights", "for margin notes"),
            ("three brightness steps", "a USB port", "a slim barrel"),
        ),
    )),
    World("guitars", ("LB", "GS", "TR"), (
        Family(
            "guitar", "guitar", ("electric guitar", "semi-hollow guitar"),
            ("has a {code} bridge", "is strung through bridge type {code}", "carries the {code} tailpiece"),
            ("for blues and rock", "for the first band", "for studio sessions"),
            ("a maple neck", "two humbuckers", "locking tuners", "a satin finish"),
        ),
        Family(
            "strings", "string set", ("nickel string set", "light-gauge string set", "coated string set"),
            ("is wound for bridge type {code}", "seats in {code} saddles", "holds pitch on {line} necks with {code}"),
            ("for bending leads", "for bright chords", "for long rehearsals"),
            ("reinforced ball ends", "a warm tone", "rust protection", "a hexagonal core"),
        ),
        Family(
            "tremolo", "upgrade part", ("tremolo arm", "saddle and spring kit"),
            ("screws into the {code} bridge", "retrofits tailpiece {code}", "matches bridge type {code}"),
            ("for dive bombs", "for stable tuning"),
            ("hardened steel", "a soft rubber tip", "all screws in the box"),
        ),
    )),
    World("cycling", ("WX", "TB", "AX"), (
        Family(
            "bike", "bike", ("gravel bike", "city bike"),
            ("rolls on {code} wheels", "is built to wheel standard {code}", "uses {code} rims"),
            ("for the commute", "for forest roads", "for weekend tours"),
            ("hydraulic brakes", "an alloy frame", "internal cables", "a carbon fork"),
        ),
        Family(
            "tyre", "tyre", ("puncture-proof tyre", "folding tyre", "studded winter tyre"),
            ("mounts on {code} rims", "is moulded to wheel standard {code}", "fits {line} frames with {code} wheels"),
            ("for wet asphalt", "for loose gravel", "for snow and ice"),
            ("a reflective sidewall", "a supple casing", "deep shoulder lugs", "tubeless beads"),
        ),
        Family(
            "hublight", "lighting set", ("dynamo light set", "spoke reflector set"),
            ("is driven by {code} hubs", "attaches to {code} wheels", "follows wheel standard {code}"),
            ("for dark evenings", "for city traffic"),
            ("a stand-light", "a beam of 60 lux", "tool-free clips"),
        ),
    )),
    World("aquariums", ("AQ", "RF", "TN"), (
        Family(
            "aquarium", "tank", ("glass aquarium", "nano aquarium"),
            ("has the {code} rim", "is drilled for system {code}", "uses the {code} chamber"),
            ("for tetras and shrimp", "for planted layouts", "for a quiet corner"),
            ("curved front glass", "a soft-close lid", "a white LED bar", "polished edges"),
        ),
        Family(
            "filter", "filter", ("hang-on filter", "carbon filter refill", "sponge filter pack"),
            ("hangs on the {code} rim", "drops into the {code} chamber", "plugs into {line} tanks of system {code}"),
            ("for clear water", "for sensitive fry", "for heavy feeding"),
            ("a silent impeller", "three media stages", "an adjustable outlet", "washable foam"),
        ),
        Family(
            "heater", "heater", ("glass heater", "thermostat heater"),
            ("slots into system {code}", "clips below the {code} rim", "is rated for the {code} chamber"),
            ("for tropical fish", "for winter rooms"),
            ("automatic shut-off", "a red status lamp", "shatterproof glass"),
        ),
    )),
    World("camping", ("CS", "PF", "NR"), (
        Family(
            "tent", "tent", ("dome tent", "tunnel tent"),
            ("pitches on {code} poles", "belongs to camp system {code}", "has {code} hubs"),
            ("for two in summer", "for windy ridges", "for family sites"),
            ("taped seams", "a deep porch", "a mesh inner", "colour-coded clips"),
        ),
        Family(
            "stove", "stove", ("gas stove", "windproof stove", "folding twin burner"),
            ("hangs from {code} hubs", "stands on the {code} rail", "joins {line} kitchens of camp system {code}"),
            ("for quick noodles", "for melting snow", "for group meals"),
            ("a piezo igniter", "a simmer valve", "a pot support", "a steel windshield"),
        ),
        Family(
            "lantern", "lantern", ("rechargeable lantern", "string light lantern"),
            ("hooks into {code} hubs", "runs along {code} poles", "is part of camp system {code}"),
            ("for card games after dark", "for night reading"),
            ("a warm dimmer", "a solar lid", "a splash-proof body"),
        ),
    )),
    World("sewing", ("NS", "BC", "JF"), (
        Family(
            "sewing", "sewing machine", ("sewing machine", "quilting machine"),
            ("takes {code} bobbins", "works with needle system {code}", "has a {code} hook"),
            ("for hems and repairs", "for dressmaking", "for heavy denim"),
            ("an automatic threader", "60 stitch patterns", "a walking foot", "an extension table"),
        ),
        Family(
            "thread", "thread pack", ("polyester thread set", "pre-wound bobbin pack", "embroidery thread set"),
            ("is wound on {code} bobbins", "glides through the {code} hook", "feeds {line} machines with {code}"),
            ("for cotton seams", "for satin stitches", "for strong joins"),
            ("24 fade-proof shades", "low lint", "a storage box", "an even twist"),
        ),
        Family(
            "needle", "needle pack", ("jeans needle pack", "stretch needle pack"),
            ("belongs to needle system {code}", "clears the {code} hook", "is ground for system {code}"),
            ("for thick layers", "for jersey and lycra"),
            ("a titanium coating", "colour-marked shanks", "a polished eye"),
        ),
    )),
    World("gaming", ("GX", "VS", "OP"), (
        Family(
            "console", "console", ("game console", "handheld console"),
            ("runs the {code} platform", "is a {code} system", "plays {code} discs and downloads"),
            ("for the living room", "for party nights", "for trips"),
            ("a fast solid-state drive", "4K output", "a quiet fan", "split-screen modes"),
        ),
        Family(
            "controller", "controller", ("wireless controller", "racing wheel", "arcade stick"),
            ("pairs with the {code} platform", "speaks protocol {code}", "is licensed for {line} units on {code}"),
            ("for shooters", "for long sessions", "for time trials"),
            ("hall-effect sticks", "back paddles", "strong rumble", "a textured grip"),
        ),
        Family(
            "game", "game", ("adventure game", "football game"),
            ("needs the {code} platform", "is released for {code}", "loads on {code} systems"),
            ("for one to four players", "for story lovers"),
            ("an orchestral score", "online leagues", "a map editor"),
        ),
    )),
    World("grilling", ("GR", "FB", "KT"), (
        Family(
            "grill", "grill", ("charcoal grill", "kettle grill"),
            ("has the {code} bowl", "is laid out for grate size {code}", "burns in a {code} firebox"),
            ("for garden parties", "for balconies", "for slow ribs"),
            ("a lid thermometer", "an ash catcher", "a warming rack", "sturdy wheels"),
        ),
        Family(
            "charcoal", "fuel", ("lump charcoal bag", "briquette bag", "smoking wood chunks"),
            ("is graded for the {code} bowl", "stacks well in a {code} firebox", "feeds {line} kettles of size {code}"),
            ("for steady heat", "for a quick start", "for beech smoke"),
            ("little ash", "wood from managed forests", "a four-hour burn", "an even piece size"),
        ),
        Family(
            "grate", "grate", ("cast-iron grate", "rotisserie kit"),
            ("sits in the {code} bowl", "replaces grate size {code}", "drops over a {code} firebox"),
            ("for searing", "for whole chickens"),
            ("an enamel coating", "a hinged edge", "sturdy handles"),
        ),
    )),
)
# fmt: on
