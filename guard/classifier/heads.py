"""What the guard model answers: the names and order of its heads. All else in this folder counts on the order."""

from types import MappingProxyType

TASKS = ("prompt_harm", "response_harm", "attack", "refusal", "toxicity")

HAZARDS = MappingProxyType(
    {
        "S1": "Violent Crimes",
        "S2": "Non-Violent Crimes",
        "S3": "Sex-Related Crimes",
        "S4": "Child Sexual Exploitation",
        "S5": "Defamation",
        "S6": "Specialized Advice",
        "S7": "Privacy",
        "S8": "Intellectual Property",
        "S9": "Indiscriminate Weapons",
        "S10": "Hate",
        "S11": "Suicide & Self-Harm",
        "S12": "Sexual Content",
        "S13": "Elections",
        "S14": "Code Interpreter Abuse",
    }
)
"""MLCommons hazards; S14 as Llama Guard adds it. Each is answered given that the text is harmful at all."""

HEADS = (*TASKS, *HAZARDS)
