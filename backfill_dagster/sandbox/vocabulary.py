"""The words that sandbox accounts write with."""

LANGUAGES = ("en", "de", "ja", "pt", "ar")

_TEXTS = {
    "en": (
        "the rain garden printer lighthouse coffee soup train protocol federation morning river paper window "
        "quiet signal orange bridge winter yesterday maybe again never almost always people light open data "
        "study candle harbour thunder pocket library it's don't naïve café"
    ),
    "de": (
        "der Regen Garten Drucker Leuchtturm Kaffee Suppe Zug Morgen Fluss Fenster leise Brücke Größe Übung "
        "gestern vielleicht wieder niemals fast immer Leute Licht offen Straße Äpfel öfter"
    ),
    "ja": "今日は 雨 庭 灯台 コーヒー スープ 電車 朝 川 窓 静か 橋 冬 昨日 たぶん 光 図書館 です 、",
    "pt": (
        "a chuva jardim farol café sopa trem manhã rio janela silêncio ponte inverno ontem talvez não já "
        "pessoas luz aberto coração você ações"
    ),
    "ar": "المطر حديقة منارة قهوة حساء قطار صباح نهر نافذة جسر شتاء أمس ربما ضوء مفتوح مكتبة",
}

WORDS = {language: text.split() for language, text in _TEXTS.items()}

EMOJI = ("🎉", "🌧️", "☕", "🦋", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🧑🏽‍🚀", "❤️", "🇵🇹", "😂😂")

TAGS = ("atproto", "bluesky", "gardening", "Straße", "写真", "openscience", "caturday", "100daysofcode")

SITES = ("example.com", "news.example.org", "blog.example.net", "bücher.example", "example.co.jp")

NAMES = ("Ada", "Bruno", "Chiyo", "Dafna", "Emeka", "Farah", "Goran", "Hilde", "Itzel", "Jun", "Kofi", "Lena")
