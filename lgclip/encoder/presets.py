"""Names the hub repositories of the presets that are models of open_clip.

open_clip's own list is behind an import of torch and of all its models, which takes longer than `lgclip doctor` may
take in all. A test compares these names with that list.
"""

OPEN_CLIP_REPOSITORIES = {
    "metaclip2_bigg14": "timm/vit_gigantic_patch14_clip_378.metaclip2_worldwide",
    "metaclip2_h14": "timm/vit_huge_patch14_clip_224.metaclip2_worldwide",
    "mobileclip": "timm/MobileCLIP2-S2-OpenCLIP",
    "pe_core_b16": "timm/PE-Core-B-16",
    "pe_core_l14": "timm/PE-Core-L-14-336",
    "rn101": "timm/resnet101_clip.openai",
    "rn50": "timm/resnet50_clip.openai",
    "siglip2_b16": "timm/ViT-B-16-SigLIP2",
    "siglip2_l16": "timm/ViT-L-16-SigLIP2-256",
    "siglip2_so400m": "timm/ViT-SO400M-14-SigLIP2",
    "siglip2_so400m_384": "timm/ViT-SO400M-16-SigLIP2-384",
    "vit_b16": "timm/vit_base_patch16_clip_224.openai",
    "vit_b16_datacomp": "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
    "vit_b32": "timm/vit_base_patch32_clip_224.openai",
    "vit_bigg14": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "vit_h14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "vit_l14": "timm/vit_large_patch14_clip_224.openai",
    "vit_l14_336": "timm/vit_large_patch14_clip_336.openai",
    "vit_l14_datacomp": "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
}
