# ruff: noqa: E501
"""Recognizes sentences of a language model that address the user: refusals, error messages, and talk around a list.

A description of an image names a thing, and has neither "I" nor "your request" as its subject. The phrases are
therefore tied to the beginning of a clause and to the words of an assistant; single words such as "sorry", "request"
or "cannot" say nothing, since a photo may show a sorry card, a request form or a bird that cannot fly. Text in
quotation marks is left out, because it may be written on a sign.
"""

import re

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'"})  # noqa: RUF001
_QUOTED = re.compile(r'"[^"]{0,300}"|“[^”]{0,300}”|«[^»]{0,300}»|„[^“”]{0,300}[“”]')
_NOT_WORDS = re.compile(r"[^\w',.!?]+")
_BREAK = re.compile(r"[—–;:()]|\s-\s|--")  # noqa: RUF001
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_END_MARKS = str.maketrans(".!?", "   ")
_MARKS_AROUND = " ,'*_#[]<>|~"
_MARKS_BEFORE_ERROR = " *_#[(<>!\u26a0\u274c\ufe0f"

_START = r"(?:^|, )(?:(?:but|however|and|so|therefore|unfortunately|regrettably|sadly|apologies|sorry|please|well|oh|hmm|because|since|as|thus|hence|why|while|though|although|then|note|now|that|which|thing|here|assistant|ai|model|am afraid|'m afraid),? ){0,3}"
_WITHIN = r"(?:^|, |\b(?:but|so|because|since|and|however|that|therefore|assistant|model|ai|unfortunately) )"
_ASSIST = (
    r"(?:assist|help|provide|generate|create|write|fulfil+|comply|describe|produce|complete|continue|answer|respond|"
    r"process|offer|share|discuss|engage|depict|proceed|satisfy|fulfill|accommodate|return|draw|output|participate)"
)
_BLOCKED = (
    r"(?:rejected|denied|declined|refused|blocked|flagged|disallowed|prohibited|filtered|withheld|censored|moderated)"
)
_NEGATION = (
    r"(?:can't|cannot|can not|can no longer|can neither|could not|couldn't|won't|will not|would not|wouldn't"
    r"|should not|shouldn't|may not|must not|mustn't|do not|don't|did not|didn't|have not|haven't|never"
    r"|(?:must|have to|need to|will have to|has to|would like to|respectfully|politely|kindly|will|wish to|choose to"
    r"|shall) (?:\w+ ){0,2}?(?:decline|refuse|refrain|abstain|pass|reject)|decline|declined|refuse|refused|refrain"
    r"|regret|apologi[sz]e|(?:would |'d )?rather not|(?:would |'d )?prefer not|choose not|lack the|only able)\b"
)
_STATE = (
    r"(?:not|unable|sorry|afraid|going to (?:have to )?(?:decline|pass)|programmed|restricted|prohibited|required|"
    r"obligated|incapable|forbidden|unwilling|obliged|just an? (?:ai|language|text)|only an? (?:ai|language|text)|"
    r"an? (?:\w+ ){0,2}(?:ai|language model|assistant|chatbot))\b"
)
_POLICY = (
    r"(?:(?:content|usage|use|safety|moderation|community|ethical|ethics|security|service|openai'?s?|company|platform)"
    r" (?:and \w+ |use )?(?:policy|policies|guidelines?|filters?|filtering|systems?|moderation|checks?|terms|standards)"
    r"|(?:my|our) (?:\w+ ){0,3}(?:policy|policies|guidelines?|filters?|systems?|rules|standards|restrictions|"
    r"programming|principles|constraints|protocols?|training|values|instructions)|terms of (?:service|use))\b"
)
_REQUEST = r"(?:request|prompt|query|input|question|message|submission|instruction|content|topic|subject)s?"

_REFUSALS = [
    re.compile(pattern)
    for pattern in (
        # "I must respectfully decline to ...", "but we can't ..."
        rf"{_START}(?:i|we) (?:\w+ ){{0,3}}?{_NEGATION}",
        rf"{_WITHIN}(?:i|we) (?:\w+ ){{0,2}}?(?:can't|cannot|can not|won't|will not|must decline|decline|refuse)\b",
        rf"{_START}(?:i'm|i am|we're|we are|i was|i have been|i've been|im) (?:\w+ ){{0,3}}?{_STATE}",
        rf"{_WITHIN}(?:i'm|i am|we're|we are) (?:\w+ )?(?:unable|not able|not allowed|not permitted|not comfortable)\b",
        rf"{_START}(?:i|we)'(?:d|ll|ve) (?:\w+ ){{0,3}}?(?:not|decline|refuse|refrain|pass)\b",
        # "Sorry, ...", "My apologies, ..."
        r"^(?:(?:i'm|i am|we're|we are) )?(?:(?:so|very|really|truly|deeply|terribly) )?sorry"
        r"(?:$| ?,| but| i\b| we\b| for (?:any|the) inconvenience| that i| about (?:that|this))",
        r"^(?:(?:my|our|sincere|sincerest|deepest|many|with|please accept my) ){0,3}apologies\b(?:$| ?,| but| for any| i)",
        r"^(?:please )?(?:forgive|excuse) me\b",
        # "Unable to generate ...", "Cannot comply ..."
        rf"^(?:(?:i'm|unfortunately|currently|generation|model|assistant|system|error|is|was|it's|,) ){{0,3}}"
        rf"(?:unable to|not able to|cannot|can't|can not|could not|couldn't|will not|won't|failed to|refus(?:ing|ed|es) to"
        rf"|declin(?:ing|ed|es) to|not possible to|impossible to|not allowed to|not permitted to) (?:\w+ )?{_ASSIST}\b",
        # "Your request for a cat was rejected by ..."
        rf"\b(?:your|this|user's) (?:\w+ )?{_REQUEST}\b(?:,? \S{{1,40}}){{0,10}}? "
        rf"(?:{_BLOCKED}|violat\w{{0,6}}|not allowed|not permitted|cannot be|can't be|can not be|could not be|couldn't be|"
        rf"will not be|won't be|unable|inappropriate|unsafe|harmful|against|conflicts?|not something|not possible|"
        rf"not appropriate|not supported|triggered|contraven\w{{0,6}}|breach\w{{0,4}}|falls? outside|goes beyond)\b",
        rf"^(?:(?:the|your|user|requested|this|that) ){{0,2}}(?:image |text )?(?:{_REQUEST}|output|response|generation|"
        rf"completion)\b(?: for| of| about| to| on)?(?:,? \S{{1,40}}){{0,8}}? (?:(?:was|were|is|are|has been|have been|"
        rf"had to be|got) )(?:\w+ )?{_BLOCKED}\b",
        rf"^(?:(?:the|your|user) )?(?:{_REQUEST}|output|response|generation|completion|access) {_BLOCKED}"
        rf"(?:$| ?,| by| due| because| for\b| as\b| under)",
        rf"^(?:{_BLOCKED}|refusal|forbidden|redacted|not allowed|no comment|access denied|permission denied|"
        rf"prohibited content|content (?:warning|policy|filter|violation|removed|unavailable|blocked)|safety (?:violation|"
        rf"block|refusal))(?:$| ?,| by\b| due| because| violation)",
        # "... violates our content policy", "My guidelines do not allow ..."
        rf"\b(?:violat\w{{0,6}}|breach\w{{0,4}}|contraven\w{{0,6}}|conflicts? with|goes against|go against|against|"
        rf"prohibited by|forbidden by|disallowed by|not allowed by|not permitted by|restricted by|falls? under|due to|"
        rf"because of|per|under|{_BLOCKED} (?:by|under|due to|because of)|inconsistent with|not comply with|triggered)"
        rf" (?:\w+ ){{0,3}}?{_POLICY}",
        rf"^(?:\w+ ){{0,3}}?{_POLICY}(?: \S{{1,40}}){{0,4}}? (?:violation|prevents?|prohibits?|forbids?|do not|don't|does not|"
        rf"doesn't|restricts?|rejected|refused|blocked|triggered|stops?|require me) ?(?:me|us|allow|permit|describ\w{{1,3}}|"
        rf"generat\w{{1,4}}|creat\w{{1,3}}|provid\w{{1,3}}|depict\w{{0,3}}|this|your|such|the request|the prompt|,|$)",
        # "As an AI ...", "This assistant cannot ..."
        r"(?:^|, )as (?:an?|your) (?:\w+ ){0,4}?(?:ai|language model|llm|ai assistant|virtual assistant|assistant|chatbot)"
        r"\b",
        rf"^(?:this|the) (?:\w+ )?(?:model|assistant|ai|system|chatbot|tool|service) (?:\w+ )?(?:cannot|can't|can not|could"
        rf" not|won't|will not|is (?:unable|not able|not allowed|not designed)|refus\w{{1,3}}|declin\w{{1,3}}|does not|"
        rf"doesn't|is not) (?:to )?(?:\w+ )?(?:{_ASSIST}|able|allowed|designed)\b",
        # "It would be inappropriate to ...", "Describing a gun is not allowed."
        # Not after an article: "this is a harmful insect", "this is a star against a black background" describe.
        r"^(?:it|that|this|doing so|to do so)(?:'s| is| would be| was| might be| may be| could be) "
        r"(?:(?!(?:an?|the|things?)\b)\w+ ){0,2}?"
        r"(?:inappropriate|unethical|unsafe|irresponsible|harmful|impossible|illegal|prohibited|forbidden|"
        r"not (?:\w+ )?(?:appropriate|ethical|possible|safe|right|something|allowed|permitted|able|acceptable|okay|ok)|"
        r"(?:against|beyond|outside) (?:my|our|your|the|any|what) (?:\w+ ){0,2}?(?:polic|guideline|rule|scope|capabilit|"
        r"abilit|terms|principle|purpose|value|programming|law|i\b|we\b)\w{0,12})\b",
        r"^(?:it|that|this)(?: isn't| wouldn't be| would not be| is not| ain't| can't be| cannot be) ",
        r"^(?:describing|generating|creating|providing|writing|producing|depicting|discussing|sharing) (?:\w+ ){0,2}?"
        r"(?:an?|the|such|this|that|of|about|for|any|content|thing|descriptions?|prompts?|images?)\b(?:,? \S{1,40}){0,8}? "
        r"(?:would be|is|are|goes|could be|may be|might be|could|may|would|might|can) (?:\w+ )?(?:not|prohibited|"
        r"inappropriate|harmful|unsafe|against|forbidden|restricted|unavailable|unethical|illegal|violat\w{0,3}|"
        r"promote|encourage|cause)\b",
        rf"^no (?:\w+ )?(?:prompts?|descriptions?|images?|content|captions?|sentences?|output)\b(?: \S{{1,40}}){{0,6}}? "
        rf"(?:can|could|will|is|are|was|were) (?:be |available|generated|provided|allowed|{_BLOCKED})",
        r"\b(?:not (?:something|a topic|content|a request)|nothing) (?:that |which )?(?:i|we)\b",
        r"\b(?:help|assist) (?:you )?with (?:that|this|your request|such)\b",
        rf"\b(?:fulfil+|comply with|satisfy|honou?r|process|complete|answer) (?:this|that|your|the|such) (?:\w+ )?{_REQUEST}\b",
        r"^(?:let's|let us) (?:talk|discuss|change|not|avoid|move on|explore something|switch)\b",
        r"^for (?:safety|legal|ethical|security|policy|privacy|copyright) reasons\b",
        r"\bcan only (?:help|assist|answer|provide|generate|discuss)\b",
        r"^(?:instead|alternatively),? (?:i|we|you|would|how|perhaps|consider|let)\b",
        # Other languages, of which a check of the script cannot tell those with Latin letters.
        r"^(?:es tut mir leid|tut mir leid|entschuldigung|leider (?:kann|ist|darf)|ich (?:kann|darf|bin|möchte)\b|"
        r"lo siento|lo lamento|disculp|perdón|no puedo|no me es posible|como (?:modelo|ia|una ia|un modelo)|"
        r"(?:je suis )?(?:vraiment )?désolée?|je (?:ne )?(?:peux|suis|dois)\b|malheureusement|en tant qu|"
        r"mi dispiace|non posso|sono spiacente|scusa|desculpe|sinto muito|não posso|infelizmente|"
        r"het spijt me|sorry maar|ik kan|helaas|przepraszam|niestety|nie mogę|förlåt|tyvärr|jag kan|beklager|"
        r"извин|я не могу|к сожалению|прост|üzgünüm|maalesef|"
        r"抱歉|很抱歉|非常抱歉|对不起|對不起|我无法|我無法|我不能|无法|申し訳|すみません|ごめん|恐れ入り|죄송|미안|عذر|آسف)",
    )
]
_GIVES_ANSWER = re.compile(
    r"\b(?:here are|here is|here's|here you|below are|below is|the following|as follows|instead are)\b"
)
_SORRY_FOR_DELAY = re.compile(
    r"(?:sorry|apologies|apologi[sz]e)(?: \w+){0,2} (?:confusion|delay|mistake|misunderstanding|earlier|oversight|previous)"
)

_VERBATIM_ERROR = re.compile(
    r"<!doctype|<html\b|</?(?:body|head|title)>|traceback \(most recent|\bhttp(?:/\d\.\d)? [45]\d\d\b"
    r"|\b(?:http )?status code:? \d{3}\b|\berror code:? \d{3} ?[-–]",  # noqa: RUF001
    re.I,
)
_ERROR_START = re.compile(
    r"(?:error|(?:\w{1,30} )?(?:api|http|server|runtime|internal|unexpected|unknown|network|connection|timeout) error|exception)"
    r"(?=$|[^\w-])|internal server error|bad gateway|service (?:temporarily )?unavailable"
    r"|gateway time-?out|too many requests|rate limit(?:ed| reached| exceeded| error|$)|quota exceeded|invalid api key"
    r"|unauthori[sz]ed(?:$|[:.,]| access| request)|request timed out|context length exceeded"
    r"|(?:null|none|undefined|nan|n/a)[.!]?$",
    re.I,
)

_THINGS = r"(?:prompts|descriptions|captions|sentences)"
_THING = r"(?:prompts?|descriptions?|captions?|sentences?)"
_CHAT = [
    re.compile(pattern)
    for pattern in (
        r"^(?:sure(?: thing)?|certainly|of course|absolutely|definitely|okay|ok|alright|all right|got it|understood"
        r"|no problem|noted|great|perfect|gladly|with pleasure|happy to help|you got it|yes|yep|hello|hi|hey|greetings"
        r"|thanks|thank you|you're welcome|my pleasure|good question|great question|here you go|here we go|there you go"
        r"|voil[aà]|enjoy|done|good luck|have fun|cheers|right|great idea|excellent)(?:$| ?,| there| here| i\b| let)",
        rf"^(?:here|below|these|those|the following|following|above|listed)\b(?:,? \S{{1,40}}){{0,12}}? {_THINGS}\b",
        rf"^(?:here|below)(?:'s| is) (?:the|your|my|an?|one) (?:\w+ ){{0,4}}?(?:json|list of|{_THING} (?:of|for|that)|set of|"
        rf"collection of|series of|response|output|answer|result|requested)\b",
        r"^(?:please )?(?:let me know|feel free|i hope|hope (?:this|these|that|it|you)|would you like|do you (?:want|need|have)"
        r"|want (?:more|me)|shall i|should i|can i|may i|could you|can you|how (?:can|may|about)|what would|is there anything"
        r"|anything else|if you(?:'d|'re| would| need| want| like| have)|note(?: that|s? ?,|$)|please note|disclaimer"
        r"|remember(?: to| that| ?,)|keep in mind|as requested|as you (?:requested|asked|wished)|as per your|per your|based on your"
        r"|happy (?:to help|prompting|creating|generating|drawing)|looking forward|thank you|thanks for|enjoy (?:your|the|these|creating)"
        r"|you (?:can|may|could|might) (?:also |then |now )?(?:use|adjust|modify|ask|customi[sz]e|change|try|tweak|copy|combine)"
        r"|please (?:try|ask|rephrase|choose|provide|consult|contact|select|use|submit|refer|specify|clarify|tell|give|share))(?!\w)",
        rf"^(?:these|those|each|all|every|this|both|the above|the) (?:\w+ ){{0,3}}?(?:{_THINGS})\b",
        rf"^(?:each|every|this|another) (?:\w+ )?{_THING}\b",
        r"^this (?:list|response|json|answer|output|set)\b",
        r"^(?:these|those|they) (?:\w+ )?(?:should|will|can|are designed|aim|cover|vary|highlight|capture|showcase)\b",
        r"^(?:i've|i'll|i'd|i have|i will|i would|i can|i could|i am|i'm|i made|i tried|i wrote|i created|i used|i included"
        r"|i ensured|i aimed|i focused|i added|i think|i need|i should|i must|i want|i understand|i hope|we need|we have"
        r"|we can|we should|we must|let me|let's|my (?:response|answer|prompts|descriptions|goal))\b",
        rf"^(?:\d+ |[a-z]+ )?(?:text to image |image |photo |detailed |generated |final ){{0,3}}{_THINGS}(?:$| ?,| for\b| of\b| about\b)",
        rf"^(?:text to image |image ){{1,2}}{_THING}\b",
        rf"^(?:\w+ ){{1,3}}?{_THINGS}$",
        rf"^(?:write|generate|create|provide|give)(?: me)? (?:\w+ ){{1,4}}?{_THING}\b",
    )
]
_CLOSER = re.compile(
    r"(?<=[.!?]) (?:please let me know|let me know|feel free|i hope|hope (?:this|these)|would you like (?:me|more)"
    r"|if you(?:'d| would)? (?:like|want|need)|enjoy your|is there anything else)\b",
    re.I,
)
_OPENER = re.compile(
    r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|got it|no problem|here you go)[!.,:]\s{1,8}"
    r"(?=(?:an?|the|one|two|three|close-up|photo|[\"“])\W)",
    re.I,
)


def is_refusal(text: str, name: str = "") -> bool:
    """Checks whether a text declines a request."""
    for sentence in _sentences(text, name):
        if _SORRY_FOR_DELAY.search(sentence) or _GIVES_ANSWER.search(sentence):
            continue
        if any(pattern.search(sentence) for pattern in _REFUSALS):
            return True
    return False


def is_error_text(text: str, name: str = "") -> bool:
    """Checks whether a text is a message of a program."""
    text = text.strip()
    if _VERBATIM_ERROR.search(text):
        return True
    word, _, _ = text.partition(" ")
    # "openai.RateLimitError:", "ERROR:"
    if word.endswith(":"):
        last = word.rstrip(":").rpartition(".")[2]
        if last.lower() in ("error", "exception", "fatal", "warning") or last.endswith(("Error", "Exception")):
            return True
    if name and text.casefold().startswith(name.casefold()):
        return False
    return bool(_ERROR_START.match(text.lstrip(_MARKS_BEFORE_ERROR))) and not name.casefold().startswith("error")


def is_chat(text: str, name: str = "") -> bool:
    """Checks whether a text is addressed to the user, as an introduction or an offer is, and describes nothing."""
    stripped = text.strip()
    if stripped.endswith((":", "：")):  # noqa: RUF001
        return True
    sentences = _sentences(text, name)
    return bool(sentences) and any(pattern.search(sentences[0]) for pattern in _CHAT)


def offers_answer(text: str) -> bool:
    """Checks whether a text announces an answer, even if it begins with an excuse."""
    return any(_GIVES_ANSWER.search(sentence) for sentence in _sentences(text, ""))


def strip_chat(text: str) -> str:
    """Removes an introduction and an offer that stand on the same line as a sentence."""
    opener = _OPENER.match(text)
    if opener:
        text = text[opener.end() :]
    closer = _CLOSER.search(text)
    if closer:
        text = text[: closer.start()]
    return text


def _sentences(text: str, name: str) -> list[str]:
    """Returns the sentences of a text in lower case, with words and commas only, and the class name as "thing"."""
    text = text.translate(_APOSTROPHES).casefold()
    unquoted = _QUOTED.sub(" ", text)
    if unquoted.strip(" ,."):
        text = unquoted
    # A name of one or two letters, such as "I", is a word that phrases need.
    if len(name) > 2:
        text = text.replace(name.translate(_APOSTROPHES).casefold(), "thing")
    text = _BREAK.sub(" , ", text)
    sentences: list[str] = []
    for part in _SENTENCE_END.split(text):
        words = _NOT_WORDS.sub(" ", part.translate(_END_MARKS)).replace(",", " ,")
        sentence = " ".join(words.split()).strip(_MARKS_AROUND).replace(" , ,", " ,")
        # A comma between words is written "a, b" in the patterns.
        sentence = sentence.replace(" ,", ",")
        if sentence:
            sentences.append(sentence)
    return sentences
